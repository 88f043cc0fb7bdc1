// SIMD vectors by the compiler's vector extension, and sigmoid and tanh for them. Included by gemm.inl alone,
// inside the namespace of one instruction set, and so without an include guard.

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: a sum with it has the integer in its low bits
  static constexpr float kLargest = 87.0f;      // exp(87) is finite, exp(-87) normal
  static constexpr float kOverflow = 89.0f;     // exp(89) is infinite, and below 2^129
  static constexpr float kLn2High = 0.693145751953125f;  // 15 bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = 1.428606765330187e-06f;
  static constexpr int kSeriesTerms = 7;  // |r| <= ln2 / 2: the first term left out is r^8 / 8!, 1.5e-8 of r
};
template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLargest = 708.0;
  static constexpr double kOverflow = 710.0;                      // exp(710) is infinite, and below 2^1025
  static constexpr double kLn2High = 6.93147180369123816490e-01;  // 33 bits
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kSeriesTerms = 13;  // r^14 / 14! is 1.2e-17 of r
};

template <class T>
using Vec = typename Lanes<T>::Vec;
template <class T>
inline constexpr int64_t kLanes = kVectorBytes / sizeof(T);
static_assert(kLanes<float> <= kMaxLanes);

template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> splat(T x) {
  return x - Vec<T>{};  // not `x + 0`, which would turn -0 into +0
}

template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
FUSEDLSTM_HOST_DEVICE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n lanes; the others read as zero and are not written.
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> load(const T* p, int64_t n) {
  if (n >= kLanes<T>) return load(p);
  Vec<T> v{};
  for (int64_t j = 0; j < n; ++j) v[j] = p[j];
  return v;
}

template <class T>
FUSEDLSTM_HOST_DEVICE void store(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) return store(p, v);
  for (int64_t j = 0; j < n; ++j) p[j] = v[j];
}

// float16 to float32 for processors without an instruction for it.
FUSEDLSTM_HOST_DEVICE Vec<float> widen_half_bits(const Half* p) {
  using Bits = Lanes<float>::Bits;
  typedef uint16_t Stored __attribute__((vector_size(kVectorBytes / 2)));
  Stored stored;
  std::memcpy(&stored, p, sizeof stored);
  const Bits bits = __builtin_convertvector(stored, Bits), magnitude = (bits & 0x7fff) << 13;
  const Bits normal = magnitude + ((127 - 15) << 23);
  const Bits infinite = normal + ((128 - 16) << 23);
  const Bits tiny = (Bits)((Vec<float>)(magnitude + ((127 - 14) << 23)) - 0x1p-14f);
  const Bits widened = magnitude >= (31 << 23) ? infinite : magnitude < (1 << 23) ? tiny : normal;
  return (Vec<float>)(widened | ((bits & 0x8000) << 16));
}

// The last n lanes, 0 < n < kLanes; the others become zero, even if they hold a NaN.
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> last_lanes(Vec<T> v, int64_t n) {
  using Bits = typename Lanes<T>::Bits;
  static constexpr auto masks = [] {
    struct {
      std::remove_reference_t<decltype(Bits{}[0])> lane[2 * kLanes<T>];
    } table{};
    for (int64_t j = kLanes<T>; j < 2 * kLanes<T>; ++j) table.lane[j] = -1;
    return table;
  }();
  Bits mask;
  std::memcpy(&mask, masks.lane + n, sizeof mask);
  return (Vec<T>)((Bits)v & mask);
}

// Weights, converted to the type that is computed in.
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> widened(const T* p) {
  return load(p);
}
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> widened(const BFloat16* p) {
#ifdef FUSEDLSTM_WIDEN_BFLOAT16
  return (Vec<T>)FUSEDLSTM_WIDEN_BFLOAT16(p);
#else
  typedef uint16_t Stored __attribute__((vector_size(kVectorBytes / 2)));
  Stored bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Vec<T>)(__builtin_convertvector(bits, typename Lanes<T>::Bits) << 16);
#endif
}
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> widened(const Half* p) {
#ifdef FUSEDLSTM_WIDEN_HALF
  return (Vec<T>)FUSEDLSTM_WIDEN_HALF(p);
#else
  return widen_half_bits(p);
#endif
}
template <class T, class W>
FUSEDLSTM_HOST_DEVICE Vec<T> widened(const W* p, int64_t n) {
  if (n >= kLanes<T>) return widened<T>(p);
  W lanes[kLanes<T>] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j] = p[j];
  return widened<T>(lanes);
}

// The first n lanes, rounded to the nearest bfloat16, ties to even.
FUSEDLSTM_HOST_DEVICE void store(BFloat16* p, Vec<float> v, int64_t n) {
  typedef uint32_t Word __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t Stored __attribute__((vector_size(kVectorBytes / 2)));
  const Word bits = (Word)v, nan = (Word)(v != v);
  const Word rounded = (bits + (0x7fff + (bits >> 16 & 1))) >> 16;
  const Stored stored = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Stored);
  if (n >= kLanes<float>)
    std::memcpy(p, &stored, sizeof stored);
  else
    for (int64_t j = 0; j < n; ++j) p[j].bits = stored[j];
}

// The same for gates and their gradients, where a subnormal number may become zero: the instruction that
// rounds a whole vector takes it as zero, as products of bfloat16 do.
template <class S, class V>
FUSEDLSTM_HOST_DEVICE void store_factor(S* p, V v, int64_t n) {
#ifdef FUSEDLSTM_NARROW_BFLOAT16
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (n >= kLanes<float>) {
      const auto stored = FUSEDLSTM_NARROW_BFLOAT16(v);
      std::memcpy(p, &stored, sizeof stored);
      return;
    }
  }
#endif
  store(p, v, n);
}

// The sums over the lanes of four vectors of eight: first within 128-bit halves, where shuffles are cheap.
template <class Eight>
FUSEDLSTM_HOST_DEVICE auto four_sums(Eight v0, Eight v1, Eight v2, Eight v3) {
  const Eight a = __builtin_shufflevector(v0, v1, 0, 8, 1, 9, 4, 12, 5, 13) +
                  __builtin_shufflevector(v0, v1, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight b = __builtin_shufflevector(v2, v3, 0, 8, 1, 9, 4, 12, 5, 13) +
                  __builtin_shufflevector(v2, v3, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight both = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
                     __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(both, both, 0, 1, 2, 3) + __builtin_shufflevector(both, both, 4, 5, 6, 7);
}

// out[c] += the sum of the lanes of v[c], for kDotColumns vectors.
template <class T>
FUSEDLSTM_HOST_DEVICE void add_sums(const Vec<T>* v, T* out) {
  constexpr int64_t L = kLanes<T>;
  if constexpr (L == 2) {
    store(out, load(out) +
                   (__builtin_shufflevector(v[0], v[1], 0, 2) + __builtin_shufflevector(v[0], v[1], 1, 3)));
  } else {
    typedef T Four __attribute__((vector_size(4 * sizeof(T))));
    Four sum;
    if constexpr (L == 4) {
      const Vec<T> a =
          __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) + __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
      const Vec<T> b =
          __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) + __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
      sum = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
    } else if constexpr (L == 8) {
      sum = four_sums(v[0], v[1], v[2], v[3]);
    } else {
      typedef T Eight __attribute__((vector_size(8 * sizeof(T))));
      Eight half[4];
      for (int c = 0; c < 4; ++c)
        half[c] = __builtin_shufflevector(v[c], v[c], 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v[c], v[c], 8, 9, 10, 11, 12, 13, 14, 15);
      sum = four_sums(half[0], half[1], half[2], half[3]);
    }
    Four before;
    std::memcpy(&before, out, sizeof before);
    sum += before;
    std::memcpy(out, &sum, sizeof sum);
  }
}

// Transposes a square of vectors: pairs of rows exchange every other lane, then every other two, and so on.
template <class T, int Step, int... Lane>
FUSEDLSTM_HOST_DEVICE void transpose_square(Vec<T>* square, std::integer_sequence<int, Lane...> lanes) {
  constexpr int L = kLanes<T>;
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) {
    if (r & Step) continue;
    const Vec<T> a = square[r], b = square[r + Step];
    square[r] = __builtin_shufflevector(a, b, (Lane & Step ? L + Lane - Step : Lane)...);
    square[r + Step] = __builtin_shufflevector(a, b, (Lane & Step ? L + Lane : Lane + Step)...);
  }
  if constexpr (2 * Step < L) transpose_square<T, 2 * Step>(square, lanes);
}
template <class T>
FUSEDLSTM_HOST_DEVICE void transpose_square(Vec<T>* square) {
  transpose_square<T, 1>(square, std::make_integer_sequence<int, kLanes<T>>());
}

struct VectorSigns {
  using V = Vec<float>;
  using Bits = Lanes<float>::Bits;

  static FUSEDLSTM_HOST_DEVICE V magnitude(V v) { return (V)((Bits)v & 0x7fffffff); }
  static FUSEDLSTM_HOST_DEVICE V with_sign_of(V sign, V v) {
    return (V)(((Bits)v & 0x7fffffff) | ((Bits)sign & ~0x7fffffff));
  }
  static FUSEDLSTM_HOST_DEVICE Bits is_negative(V v) { return (Bits)v < 0; }
};

template <class T>
struct VectorMath {
  using V = Vec<T>;
  using L = Lanes<T>;

  // 1 / (1 + exp(-x)): 0 where exp(-x) overflows, as in torch, 1 at the other end.
  static FUSEDLSTM_HOST_DEVICE V sigmoid(V x) {
    // 2^n exp(r) as 2^(n-1) times 2 exp(r), which overflows where exp does: 2^n is infinite a little earlier.
    const Parts<-1> e(clamped(-x, -L::kLargest, L::kOverflow));
    return T(1) / (e.power * (T(2) - T(2) * e.one_minus_exp) + T(1));
  }

  // From exp(2x) - 1, with a small relative error near 0 too: 2^n (exp(r) - 1) + (2^n - 1). It is +-1 long
  // before 2x is clamped. The signs are such that -0 stays -0.
  static FUSEDLSTM_HOST_DEVICE V tanh(V x) {
    const Parts<0> e(clamped(x + x, -L::kLargest, L::kLargest));
    const V expm1 = -(e.power * e.one_minus_exp) - (T(1) - e.power);
    return expm1 / (expm1 + T(2));
  }

 private:
  // A NaN stays a NaN, since it fails both comparisons.
  static FUSEDLSTM_HOST_DEVICE V clamped(V x, T smallest, T largest) {
    x = x > splat<T>(largest) ? splat<T>(largest) : x;
    return x < splat<T>(smallest) ? splat<T>(smallest) : x;
  }

  // exp(x) in two parts, x = n ln2 + r: 2^(n+Shift), and 1 - exp(r), whose relative error is small. Their
  // bits, and those of the equations in cell.h, depend on the contraction that gemm.inl describes.
  template <int Shift>
  struct Parts {
    V power, one_minus_exp;

    FUSEDLSTM_HOST_DEVICE explicit Parts(V x) {
      const V shifted = x * T(1.4426950408889634) + L::kRound;
      const V n = shifted - L::kRound;
      const V r = (x - n * L::kLn2High) - n * L::kLn2Low;
      V series = splat<T>(-kInverseFactorial[L::kSeriesTerms]);
      for (int k = L::kSeriesTerms - 1; k >= 2; --k) series = series * r - kInverseFactorial[k];
      one_minus_exp = r * r * series - r;
      const auto integer = (typename L::Bits)shifted - (typename L::Bits)splat<T>(L::kRound);
      power = (V)((integer + (L::kExponentBias + Shift)) << L::kMantissaBits);
    }
  };

  static constexpr auto kInverseFactorial = [] {
    std::array<T, L::kSeriesTerms + 1> inverse{};
    double factorial = 1;
    for (int k = 0; k <= L::kSeriesTerms; factorial *= ++k) inverse[k] = T(1) / T(factorial);
    return inverse;
  }();
};
