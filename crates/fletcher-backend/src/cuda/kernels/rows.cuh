// Rows of states 384 columns wide, 64 of them in a warpgroup's registers: each thread has a quarter of
// two rows, as the tensor cores lay out sums, in two halves of 192 columns.
#pragma once
#include "warpgroup.cuh"

constexpr int ROWS = 128, TILE_BYTES = ROWS * 128, WIDTH = 384, BLOCKS = WIDTH / 64, HALF = WIDTH / 2;

// Blocks of a launch begin at different places of the weights, four neighbours at the same: many
// multiprocessors that want the same bytes at the same time wait for the few slices of the L2 cache
// that have them, while neighbours' requests are answered as one.
DEVICE int first_of_four(int count) { return count ? blockIdx.x / 4 % count : 0; }
DEVICE int next_of(int at, int count) { return at + 1 == count ? 0 : at + 1; }

// d += 64 rows of x times half of the weights' rows, of a step.
template <class T> DEVICE void multiply(float (&d)[HALF / 2], u64 a, u64 b) {
  warpgroup_arrive();
#pragma unroll
  for (int k = 0; k < 4; ++k) warpgroup_mma_shared<T, HALF>(d, a + 2 * k, b + 2 * k, 1);
  warpgroup_commit();
}

DEVICE float2 pair_at(u32 values, int j) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(values + 32 * j));
  return v;
}

// Sums begin with the bias.
template <int N> DEVICE void begin_with(float (&d)[N / 2], u32 bias) {
  bias += lane_now() % 4 * 8;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    float2 b = pair_at(bias, j);
    d[4 * j] = d[4 * j + 2] = b.x;
    d[4 * j + 1] = d[4 * j + 3] = b.y;
  }
}

// d += 64 columns of 16 rows of a swizzled tile; these are the `BLOCK`th of d.
template <class T, int BLOCK> DEVICE void add_tile(float (&d)[HALF / 2], u32 tile, int row) {
  int lane = threadIdx.x % 32;
  row += lane % 16;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    u32 held[4];
    ldmatrix(held, tile + row * 128 + (((pair * 2 + lane / 16) ^ (row & 7)) << 4));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int at = BLOCK * 32 + pair * 8 + i * 2;
      d[at] += Format<T>::low(held[i]);
      d[at + 1] += Format<T>::high(held[i]);
    }
  }
}

// Four chains of sums a row: one would take longer than all else.
DEVICE void add_chains(float (&sums)[2], const float (&chains)[8]) {
  sums[0] += (chains[0] + chains[1]) + (chains[4] + chains[5]);
  sums[1] += (chains[2] + chains[3]) + (chains[6] + chains[7]);
}
DEVICE void add_up(float (&sums)[2], const float (&d)[HALF / 2]) {
  float chains[8] = {};
#pragma unroll
  for (int i = 0; i < HALF / 2; ++i) chains[i % 8] += d[i];
  add_chains(sums, chains);
}
DEVICE void add_squares(float (&squares)[2], const float (&d)[HALF / 2], const float (&mean)[2]) {
  float chains[8] = {};
#pragma unroll
  for (int i = 0; i < HALF / 2; ++i) {
    float apart = d[i] - mean[i / 2 % 2];
    chains[i % 8] += apart * apart;
  }
  add_chains(squares, chains);
}

// Half of the normalised rows, in the layout of an operand: four words for each 16 columns.
template <class T, int WHICH>
DEVICE void normalise(u32 (&rows)[WIDTH / 4], const float (&d)[HALF / 2], const float (&factor)[2], const float (&shift)[2],
                      u32 scale, u32 offset) {
  u32 lane = lane_now() % 4 * 8;
#pragma unroll
  for (int j = 0; j < HALF / 8; ++j) {
    float2 s = pair_at(scale + lane, WHICH * (HALF / 8) + j);
    float2 b = pair_at(offset + lane, WHICH * (HALF / 8) + j);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      rows[WHICH * (HALF / 4) + 2 * j + h] = Format<T>::pack(fmaf(fmaf(d[4 * j + 2 * h], factor[h], shift[h]), s.x, b.x),
                                                             fmaf(fmaf(d[4 * j + 2 * h + 1], factor[h], shift[h]), s.y, b.y));
  }
}

// Where a thread stores, of the two rows that it shares with three other lanes.
template <class T> struct Rows {
  T* to[2];
  bool valid[2];
  DEVICE Rows(void* matrix, int first, int end, int stride, int column) {
    int row = first + lane_now() / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      to[h] = (T*)matrix + (u64)(row + 8 * h) * stride + column + lane_now() % 4 * 8;
      valid[h] = row + 8 * h < end;
    }
  }
  // 32 columns, four words of each row. The four lanes exchange their pairs, so that each has eight
  // neighbours of one row to store.
  DEVICE void store(u32 (&w)[2][4], int column) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      quad_transpose(w[h]);
      if (valid[h]) *(uint4*)(to[h] + column) = make_uint4(w[h][0], w[h][1], w[h][2], w[h][3]);
    }
  }
};
template <class T> DEVICE void store_rows(const u32 (&held)[WIDTH / 4], const Rows<T>& rows) {
#pragma unroll
  for (int group = 0; group < WIDTH / 32; ++group) {
    u32 w[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i % 2][i / 2] = held[8 * group + i];
    rows.store(w, 32 * group);
  }
}
