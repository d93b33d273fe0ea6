// The softmax of attention, kept up to date while keys pass (Dao 2023), on the sums of a warpgroup's
// products.
#pragma once
#include "warpgroup.cuh"

constexpr float LOG2E = 1.4426950408889634f;

// Scores of KEYS keys from `k0` on, times `scale`, become weights with the base 2, for the thread's
// two rows, each of which sees the keys in [from, to); `shrink` is what all that was summed before
// takes part with.
template <int KEYS>
DEVICE void soften(float (&s)[KEYS / 2], float (&top)[2], float (&sum)[2], float (&shrink)[2], int k0, const int (&from)[2],
                   const int (&to)[2], float scale) {
  constexpr int EACH = KEYS / 4; // scores of a row that a thread has
  bool seen = k0 >= max(from[0], from[1]) && k0 + KEYS <= min(to[0], to[1]);
  if (!__all_sync(0xffffffffu, seen)) {
    int key = k0 + lane_now() % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int low = from[h] - key, high = to[h] - key; // from the thread's first key on
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& v = s[4 * j + 2 * h + e];
          v = 8 * j + e >= low && 8 * j + e < high ? v * scale : -1e30f;
        }
    }
    scale = 1.f;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float chains[4];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      float v = s[i / 2 * 4 + 2 * h + i % 2];
      chains[i % 4] = i < 4 ? v : fmaxf(chains[i % 4], v);
    }
    float most = quad_max(fmaxf(fmaxf(chains[0], chains[1]), fmaxf(chains[2], chains[3]))) * scale;
    most = fmaxf(top[h], most);
    // A row that has seen no key yet has `most` at the mask's own value: nothing counts.
    float base = most <= -1e30f ? 0.f : most;
    shrink[h] = exp2_fast(top[h] - most);
    top[h] = most;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      float& v = s[i / 2 * 4 + 2 * h + i % 2];
      v = exp2_fast(fmaf(v, scale, -base));
      chains[i % 4] = i < 4 ? v : chains[i % 4] + v;
    }
    sum[h] = fmaf(sum[h], shrink[h], (chains[0] + chains[1]) + (chains[2] + chains[3]));
  }
}

// Stores DIM columns of the thread's two rows, divided by their sums, as far as rows are below `end`.
template <class T, int DIM>
DEVICE void store_context(T* context, int stride, const float (&out)[DIM / 2], const float (&sum)[2], int row, int end) {
  int lane = lane_now();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float factor = 1.f / quad_sum(sum[h]);
    T* to = context + (u64)(row + 8 * h) * stride;
#pragma unroll
    for (int j = 0; j < DIM / 8; j += 4) {
      u32 w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        w[i] = Format<T>::pack(out[4 * (j + i) + 2 * h] * factor, out[4 * (j + i) + 2 * h + 1] * factor);
      quad_transpose(w);
      if (row + 8 * h < end) *(uint4*)(to + (j + lane % 4) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}
