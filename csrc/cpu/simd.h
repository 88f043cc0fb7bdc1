// SIMD vectors by the compiler's vector extension, and the two functions an LSTM needs of them.
// Included by kernel_impl.h alone, inside the namespace of one instruction set (no include guard on purpose).

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  static constexpr float kLargest = 87.0f;               // exp(87) is finite, exp(-87) normal
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
  static constexpr double kLn2High = 6.93147180369123816490e-01;  // 33 bits
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kSeriesTerms = 13;  // r^14 / 14! is 1.2e-17 of r
};

template <class T>
using Vec = typename Lanes<T>::Vec;
template <class T>
inline constexpr int64_t kLanes = kVectorBytes / sizeof(T);

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

template <class T>
struct VectorMath {
  using V = Vec<T>;
  using L = Lanes<T>;

  // exp(x) - 1 with a small relative error near 0 too: x = n ln2 + r, then 2^n (exp(r) - 1) + (2^n - 1).
  // Beyond +-kLargest the result is that of the bound; a NaN stays one, since it fails both comparisons.
  static FUSEDLSTM_HOST_DEVICE V expm1(V x) {
    const V largest = splat<T>(L::kLargest);
    x = x > largest ? largest : x;
    x = x < -largest ? -largest : x;
    const V shifted = x * T(1.4426950408889634) + L::kRound;
    const V n = shifted - L::kRound;
    const V r = (x - n * L::kLn2High) - n * L::kLn2Low;
    V series = splat<T>(kInverseFactorial[L::kSeriesTerms]);
    for (int k = L::kSeriesTerms - 1; k >= 2; --k) series = series * r + kInverseFactorial[k];
    series = r + r * r * series;
    const auto integer = (typename L::Bits)shifted - (typename L::Bits)splat<T>(L::kRound);
    const V power = (V)((integer + L::kExponentBias) << L::kMantissaBits);
    return power * series + (power - T(1));
  }

  static FUSEDLSTM_HOST_DEVICE V sigmoid(V x) { return T(1) / (T(2) + expm1(-x)); }

  static FUSEDLSTM_HOST_DEVICE V tanh(V x) {
    const V e = expm1(x + x);
    return e / (e + T(2));
  }

  static constexpr T kInverseFactorial[] = {
      T(1),
      T(1),
      T(1) / T(2),
      T(1) / T(6),
      T(1) / T(24),
      T(1) / T(120),
      T(1) / T(720),
      T(1) / T(5040),
      T(1) / T(40320),
      T(1) / T(362880),
      T(1) / T(3628800),
      T(1) / T(39916800),
      T(1) / T(479001600),
      T(1) / T(6227020800.0),
  };
};
