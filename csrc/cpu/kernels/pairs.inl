// Panels of pairs of bfloat16, on AVX512_BF16: an element is the pair of depth 2k and 2k + 1. Products of
// bfloat16 are exact in float, and sums are float. Included by avx512_bf16.cpp and amx.inl alone, in an
// anonymous namespace.

#define FUSEDLSTM_NARROW_BFLOAT16(v) _mm512_maskz_cvtneps_pbh(0xffff, (__m512)(v))
#include "avx512.inl"
#undef FUSEDLSTM_NARROW_BFLOAT16

struct MultiplyAddPairs {
  static FUSEDLSTM_HOST_DEVICE Vec<float> splat_element(const float* element) {
    return (Vec<float>)_mm512_maskz_set1_epi32(0xffff, std::bit_cast<int32_t>(*element));
  }
  static FUSEDLSTM_HOST_DEVICE void add(Vec<float>& sum, Vec<float> value, Vec<float> column) {
    sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)value, (__m512bh)column);
  }
};

// The depth is padded with zeros to a multiple of kDepth.
template <int64_t kDepth>
struct PairLayout {
  static constexpr int64_t kRowBytes = kNR<float> * sizeof(BFloat16);  // of a panel, for each k of the matrix

  static int64_t packed_depth(int64_t depth) { return (depth + kDepth - 1) / kDepth * kDepth / 2; }

  static Vec<float> load_along(const BFloat16* row, int64_t k, int64_t depth) {
    return (Vec<float>)_mm512_maskz_loadu_epi16(first(depth - 2 * k), row + 2 * k);
  }
  static void store_along(BFloat16* row, int64_t k, int64_t depth, Vec<float> elements) {
    _mm512_mask_storeu_epi16(row + 2 * k, first(depth - 2 * k), (__m512i)elements);
  }
  static Vec<float> load_across(const BFloat16* const* rows, int64_t k, int64_t depth, int64_t column,
                                int64_t columns) {
    const auto mask = static_cast<__mmask16>(first(columns));
    const auto values = [&](int64_t row) {
      if (row >= depth) return __m512i{};
      return _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, rows[row] + column));
    };
    return (Vec<float>)(values(2 * k) | _mm512_maskz_slli_epi32(0xffff, values(2 * k + 1), 16));
  }

  template <class S>
  static int64_t workspace(int64_t depth) {
    return kMC * row_stride(depth);
  }

  // In elements. One vector more than the depth, so that rows do not map to the same sets of the L1 cache.
  static int64_t row_stride(int64_t depth) {
    return (packed_depth(depth) / kLanes<float> + 2) * kLanes<float>;
  }

  // Copies a row block to the workspace, padded.
  static void copy(const BFloat16* const* rows, int64_t count, int64_t depth, float* workspace) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t k = 0; k < packed_depth(depth); k += kLanes<float>)
        store(workspace + r * row_stride(depth) + k, load_along(rows[r], k, depth));
  }

 private:
  static constexpr __mmask32 first(int64_t n) {
    return static_cast<__mmask32>((uint64_t(1) << std::clamp<int64_t>(n, 0, 32)) - 1);
  }
};

// Rows that are multiplied with unpacked weights. Those of an odd depth are not made of pairs, and those of
// less than a vector of pairs would be multiplied one by one.
class DotPairs {
 public:
  static constexpr int64_t kSetupRows = 0;

  DotPairs(const BFloat16* const* rows, int64_t count, int64_t depth, float* workspace)
      : of_pairs_(depth % 2 == 0 && depth >= 2 * kLanes<float>),
        single_(rows, of_pairs_ ? 0 : count, depth, workspace),
        count_(count),
        pairs_(depth / 2) {
    for (int64_t r = 0; of_pairs_ && r < count; ++r)
      rows_[r] = workspace + r * PairLayout<2>::row_stride(depth);
    if (of_pairs_) PairLayout<2>::copy(rows, count, depth, workspace);
  }

  // As that of DotRows.
  void multiply(const BFloat16* weight, int64_t gate_stride, int64_t units, float* sum) const {
    if (!of_pairs_) return single_.multiply(weight, gate_stride, units, sum);
    for (int64_t gate = 0; gate < 4; ++gate)
      dot_gemm<float, float, MultiplyAddPairs>(rows_, count_,
                                               reinterpret_cast<const float*>(weight + gate * gate_stride),
                                               pairs_, units, pairs_, sum + gate * kLanes<float>, kNR<float>);
  }

 private:
  bool of_pairs_;
  DotRows<float, BFloat16> single_;
  const float* rows_[kMC];
  int64_t count_, pairs_;
};

// Vector instructions: a product of two pairs is added to each float.
struct PairPanels : PairLayout<2> {
  static constexpr PackedFrom kPackedFrom = {.rows = 4, .entries = 24};

  using Unpacked = DotPairs;
  struct Setup {
    explicit Setup(int64_t /*count*/) {}
  };

  class RowBlock {
   public:
    RowBlock(const BFloat16* const* rows, int64_t count, int64_t depth, float* workspace)
        : count_(count), packed_depth_(packed_depth(depth)) {
      copy(rows, count, depth, workspace);
      for (int64_t r = 0; r < count; ++r) rows_[r] = workspace + r * row_stride(depth);
    }

    void multiply(const float* panel, int64_t vectors, float* sum, int64_t kc = kKC) const {
      panel_gemm<float, MultiplyAddPairs>(rows_, count_, packed_depth_, panel, vectors, sum, kc);
    }

   private:
    const float* rows_[kMC];
    int64_t count_, packed_depth_;
  };
};
