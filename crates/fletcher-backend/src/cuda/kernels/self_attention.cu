// Queries, keys and values, and attention over them, as one kernel for Hopper:
//
//   q, k, v = x * W^T + bias, q and k perhaps rotated      context = softmax(q * k^T * scale) * v
//
// for sequences of up to 128 tokens, of which a tile of 128 rows has as many whole ones as fit. A block
// makes a tile's queries, keys and values of 64 columns at a time, one head of 64 or two of 32: 192
// columns of sums, of which the keys and values become operands in shared memory and the queries stay
// in registers. So the projections, three times as wide as the state, never leave the block.
//
// Its two warpgroups either share a tile, 64 rows each, where there are fewer pieces of work than would
// keep the card busy; or they take turns at whole pieces, so that one's attention runs beside the
// other's products. Where the state is at most 384 wide, a tile of it stays in shared memory for all
// heads and only weights stream: 128 FLOP a byte of the L2 cache's, 77 otherwise.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "softmax.cuh"
#include "warpgroup.cuh"

struct SelfAttentionArgs {
  TensorMap x; // 128 rows
  TensorMap w; // 64 rows: the queries' in front, then the keys', then the values'
  const float* bias;
  const float2* cos_sin; // by place and frequency, or null
  void* context;
  const Batch* batch;
  int k;      // columns of x and W
  int width;  // of queries, of keys and of values: a multiple of 64
  int stride; // of the context
  int window; // negative for none
  float scale;
};

constexpr int M = 128, N = 192, K = 64, COLUMNS = 64;
constexpr int X_BYTES = M * K * 2, W_BYTES = N * K * 2, PART_BYTES = 64 * K * 2, STAGES = 4;
constexpr int KEPT = 6;                  // most tiles of x that stay
constexpr int OPERAND_BYTES = M * COLUMNS * 2; // of keys, and of values

// A piece of work: a tile of rows and 64 columns of each projection. Blocks begin at different columns,
// four neighbours at the same: see `first_of_four` in rows.cuh.
struct Piece {
  int tile, column, row0, rows;
  bool first, last; // of the tile
  DEVICE Piece(const SelfAttentionArgs& p, int index) {
    int across = p.width / COLUMNS, i = index % across;
    tile = index / across;
    column = (i + tile / 4) % across * COLUMNS;
    first = i == 0;
    last = i + 1 == across;
    const u32* starts = part(p.batch, p.batch->starts);
    row0 = __ldg(starts + tile);
    rows = __ldg(starts + tile + 1) - row0;
  }
};

// Which keys 64 rows see together: one block of 64 of the tile's rows, or both.
struct Blocks {
  int begin, count;
  DEVICE Blocks(int low, int high) {
    low &= -8; // operands begin at whole swizzled pieces
    count = high - low > 64 ? 2 : 1;
    begin = count == 2 ? 0 : min(low, 64);
  }
};

// 64 rows of a tile from the `first` on, by a warpgroup. A lane holds the sequence of row `lane % 16` of
// its warp as its first row and the one behind its last.
template <class T, int DIM>
DEVICE void attend(const SelfAttentionArgs& p, const u32 (&q)[4][4], u32 keys, u32 sequences, int first, int rows,
                   Blocks blocks, T* context) {
  constexpr int HEADS = COLUMNS / DIM, STEPS = DIM / 16;
  int lane = lane_now(), row = first + lane / 4, low[2], high[2]; // of what its rows see
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u32 sequence = __shfl_sync(0xffffffffu, sequences, lane / 4 + 8 * h);
    low[h] = sequence & 0xffff;
    high[h] = sequence >> 16;
    if (p.window >= 0) {
      low[h] = max(low[h], row + 8 * h - p.window);
      high[h] = min(high[h], row + 8 * h + p.window + 1);
    }
  }
  float scale = p.scale * LOG2E;
  // Sums begin with zeros that are written: what has no value would be kept for them from the start on.
  float out[HEADS][DIM / 2] = {}, top[HEADS][2], sum[HEADS][2];
#pragma unroll
  for (int head = 0; head < HEADS; ++head)
#pragma unroll
    for (int h = 0; h < 2; ++h) top[head][h] = -1e30f, sum[head][h] = 0.f;
#pragma unroll 1
  for (int block = 0; block < blocks.count; ++block) {
    int k0 = blocks.begin + 64 * block;
    u64 k = descriptor_swizzled(keys + k0 * 128), v = descriptor_swizzled(keys + OPERAND_BYTES + k0 * 128);
    float s[HEADS][32] = {};
    // Copies: ptxas 13.0 gives the registers of an operand away in a loop that comes back to it, and
    // sees through what is not computed.
    u32 queries[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i)
      asm volatile("xor.b32 %0, %1, %2;" : "=r"(queries[i / 4][i % 4]) : "r"(q[i / 4][i % 4]), "r"(rows >> 31));
    warpgroup_arrive();
#pragma unroll
    for (int head = 0; head < HEADS; ++head) {
#pragma unroll
      for (int kk = 0; kk < STEPS; ++kk)
        warpgroup_mma<T, 64>(s[head], queries[head * STEPS + kk], k + 2 * (head * STEPS + kk), 1);
      warpgroup_commit();
    }
    u32 weights[HEADS][4][4];
#pragma unroll
    for (int head = 0; head < HEADS; ++head) {
      if (head + 1 < HEADS) warpgroup_wait<1>();
      else warpgroup_wait<0>();
      float shrink[2];
      soften<64>(s[head], top[head], sum[head], shrink, k0, low, high, scale);
      if (block > 0)
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) out[head][i] *= shrink[i / 2 % 2];
#pragma unroll
      for (int kk = 0; kk < 4; ++kk)
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[head][kk][i] = Format<T>::pack(s[head][8 * kk + 2 * i], s[head][8 * kk + 2 * i + 1]);
    }
    warpgroup_arrive();
#pragma unroll
    for (int head = 0; head < HEADS; ++head)
#pragma unroll
      for (int kk = 0; kk < 4; ++kk)
        warpgroup_mma_across<T, DIM>(out[head], weights[head][kk], v + 2 * head * STEPS + kk * (16 * 128 / 16), 1);
    warpgroup_commit();
    warpgroup_wait<0>();
  }
#pragma unroll
  for (int head = 0; head < HEADS; ++head)
    store_context<T, DIM>(context + head * DIM, p.stride, out[head], sum[head], row, rows);
}

// Rotates queries and keys of 16 rows by their places.
template <int DIM> DEVICE void rotate(float (&d)[N / 2], const float2* cos_sin, u32 sequences, int first) {
  int lane = lane_now(), t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int row = lane / 4 + 8 * h, place = first + row - (__shfl_sync(0xffffffffu, sequences, row) & 0xffff);
#pragma unroll
    for (int j = 0; j < DIM / 16; ++j) {
      float4 by = __ldg((const float4*)(cos_sin + place * (DIM / 2) + 8 * j + 2 * t));
#pragma unroll
      for (int of = 0; of < 2 * COLUMNS / DIM; ++of) { // heads of queries, then of keys
        float* head = d + of * (DIM / 2) + 4 * j + 2 * h;
        rotate_pairs(head, head + DIM / 4, by);
      }
    }
  }
}

// Keys and values of 16 rows as operands: swizzled rows of 128 bytes. Those behind the tile's last are
// zeros: a weight of zero would not undo what may be there instead. Nor would it undo a value that
// the format does not hold, for the rows of other sequences: so that only its own sequence has no
// result, zeros take the value's place, and what is no number the place of its row's keys.
template <class T> DEVICE void lay(float (&d)[N / 2], u32 keys, int first, int rows) {
  int lane = lane_now(), row = first + lane % 16;
  u32 to = keys + row * 128;
  if (first + 16 > rows)
#pragma unroll
    for (int i = 32; i < 96; ++i)
      if (first + lane / 4 + i / 2 % 2 * 8 >= rows) d[i] = 0.f;
  u32 values[4][4], wrong[2] = {}; // by row: zeros unless a value is no finite number
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[k][i] = Format<T>::pack(d[64 + 8 * k + 2 * i], d[64 + 8 * k + 2 * i + 1]);
      wrong[i % 2] = Format<T>::plus_zero_times(wrong[i % 2], values[k][i]);
    }
  if (__any_sync(0xffffffffu, wrong[0] | wrong[1])) {
#pragma unroll
    for (int h = 0; h < 2; ++h) wrong[h] = wrong[h] ? 0x7fff7fffu : 0u;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (wrong[i % 2]) values[k][i] = 0;
  }
  auto store = [&](u32 at, const u32 (&w)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                 "r"(w[3]) : "memory");
  };
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    u32 at = to + (((2 * k + lane / 16) ^ (row & 7)) << 4), of[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) of[i] = Format<T>::pack(d[32 + 8 * k + 2 * i], d[32 + 8 * k + 2 * i + 1]) | wrong[i % 2];
    store(at, of);
    store(at + OPERAND_BYTES, values[k]);
  }
}

template <class T, int DIM, bool KEEP, bool TURNS> DEVICE void self_attention(const SelfAttentionArgs& p) {
  constexpr int STAGE_BYTES = W_BYTES + (KEEP ? 0 : X_BYTES), PARTS = TURNS ? 2 : 1; // parts of 64 rows each
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES + 2 * KEPT];
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 keys = shared_address(memory), ring = keys + 2 * OPERAND_BYTES, kept = ring + STAGES * STAGE_BYTES;
  u32 full = shared_address(barriers), empty = full + 8 * STAGES, x_full = empty + 8 * STAGES, x_empty = x_full + 8 * KEPT;
  if (thread == 0) {
    constexpr int READERS = TURNS ? 4 : 8;
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, READERS);
    }
    for (int i = 0; i < KEPT; ++i) {
      barrier_init(x_full + 8 * i, 1);
      barrier_init(x_empty + 8 * i, READERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release_next();
  int steps = (p.k + K - 1) / K, across = p.width / COLUMNS, pieces = p.batch->tiles * across;
  // Neighbouring pieces, so that they share tiles of x.
  int first = (int)((u64)blockIdx.x * pieces / gridDim.x), end = (int)((u64)(blockIdx.x + 1) * pieces / gridDim.x);
  auto slot_of = [](u32 count) { return count % STAGES; };
  auto phase_of = [](u32 count) { return count / STAGES & 1; };

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8 && lane == 0 && first < end) {
      u32 count = 0;
      auto fetch_weights = [&](const Piece& piece, int step) {
        u32 slot = slot_of(count), to = ring + slot * STAGE_BYTES;
        expect_bytes(full + 8 * slot, STAGE_BYTES);
#pragma unroll
        for (int i = 0; i < 3; ++i) fetch_tile(to + i * PART_BYTES, &p.w, step * K, i * p.width + piece.column, full + 8 * slot);
      };
      // No other kernel writes the weights: the first of them do not wait. The other threads touch
      // nothing of other kernels' before they have tiles of x.
      Piece piece(p, first);
      int ahead = min(STAGES, steps);
      for (; count < ahead; ++count) fetch_weights(piece, count);
      count = 0;
      wait_for_previous();
      u32 loads = 0; // tiles of rows so far
      for (int index = first; index < end; ++index) {
        piece = Piece(p, index);
        bool fresh = index == first || piece.first;
        for (int step = 0; step < steps; ++step, ++count) {
          u32 slot = slot_of(count);
          if (count >= ahead) {
            barrier_wait(empty + 8 * slot, phase_of(count) ^ 1);
            fetch_weights(piece, step);
          }
          if (!KEEP) {
            fetch_tile(ring + slot * STAGE_BYTES + W_BYTES, &p.x, step * K, piece.row0, full + 8 * slot);
          } else if (fresh) {
            barrier_wait(x_empty + 8 * step, loads & 1 ^ 1);
            expect_bytes(x_full + 8 * step, X_BYTES);
            fetch_tile(kept + step * X_BYTES, &p.x, step * K, piece.row0, x_full + 8 * step);
          }
        }
        loads += fresh;
      }
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  int group = warp / 4, t = lane % 4, each = TURNS ? 2 : 1;
  int row = (TURNS ? 0 : group * 64) + warp % 4 * 16; // and 64 rows further
  u32 count = TURNS ? group * steps : 0;
  // A group begins a piece's products when the other has begun all of its own: a slot's barrier tells
  // only its last two phases apart.
  auto take_turn = [&] {
    if (TURNS) asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
  };
  auto give_turn = [&] {
    if (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
  };
  // The operands' shared memory is one group's at a time, or both's.
  auto take_operands = [&] { named_sync(TURNS ? 3 + group : 3, 256); };
  auto give_operands = [&] {
    if (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory");
  };
  if (group == 1) {
    give_turn();
    give_operands();
  }
#pragma unroll 1
  for (int index = first + (TURNS ? group : 0); index < end; index += each) {
    Piece piece(p, index);
    u32 sequences[PARTS];
#pragma unroll
    for (int part_of = 0; part_of < PARTS; ++part_of) {
      int r = part_of * 64 + row + lane % 16;
      u32 low = r, high = r + 1;
      if (r < piece.rows) {
        low = r - part(p.batch, p.batch->places)[piece.row0 + r];
        high = part(p.batch, p.batch->ends)[piece.row0 + r] - piece.row0;
      }
      sequences[part_of] = low | high << 16;
    }
    float d[PARTS][N / 2];
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      float2 bias = __ldg((const float2*)(p.bias + j / 8 * p.width + piece.column + j % 8 * 8 + 2 * t));
#pragma unroll
      for (int i = 0; i < PARTS; ++i) {
        d[i][4 * j] = d[i][4 * j + 2] = bias.x;
        d[i][4 * j + 1] = d[i][4 * j + 3] = bias.y;
      }
    }
    u32 x_phase = (piece.tile - first / across) & 1;
    auto release = [&](u32 step, u32 at) { // of a step that has been read
      if (lane != 0) return;
      barrier_arrive(empty + 8 * slot_of(at));
      if (KEEP && piece.last) barrier_arrive(x_empty + 8 * step);
    };
    take_turn();
#pragma unroll 1
    for (int step = 0; step < steps; ++step, ++count) {
      u32 slot = slot_of(count), weights = ring + slot * STAGE_BYTES, x = KEEP ? kept + step * X_BYTES : weights + W_BYTES;
      if (KEEP) barrier_wait(x_full + 8 * step, x_phase);
      barrier_wait(full + 8 * slot, phase_of(count));
      u64 a = descriptor_swizzled(x + (TURNS ? 0 : group * PART_BYTES)), b = descriptor_swizzled(weights);
      warpgroup_arrive();
#pragma unroll
      for (int kk = 0; kk < 4; ++kk)
#pragma unroll
        for (int i = 0; i < PARTS; ++i) warpgroup_mma_shared<T, N>(d[i], a + i * (PART_BYTES / 16) + 2 * kk, b + 2 * kk, 1);
      warpgroup_commit();
      warpgroup_wait<1>();
      if (step > 0) release(step - 1, count - 1);
    }
    give_turn();
    warpgroup_wait<0>();
    release(steps - 1, count - 1);
    if (TURNS) count += steps; // the other group's piece

    u32 q[PARTS][4][4];
    take_operands();
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      if (p.cos_sin) rotate<DIM>(d[i], p.cos_sin, sequences[i], i * 64 + row);
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) q[i][k][j] = Format<T>::pack(d[i][8 * k + 2 * j], d[i][8 * k + 2 * j + 1]);
      lay<T>(d[i], keys, i * 64 + row, piece.rows);
    }
    publish();
    named_sync(TURNS ? 5 + group : 5, TURNS ? 128 : 256);
    T* context = (T*)p.context + (u64)piece.row0 * p.stride + piece.column;
#pragma unroll 1
    for (int i = 0; i < PARTS; ++i) {
      int from = (TURNS ? i : group) * 64;
      if (from >= piece.rows) break;
      const u32 *places = part(p.batch, p.batch->places) + piece.row0, *ends = part(p.batch, p.batch->ends) + piece.row0;
      Blocks blocks(from - (int)__ldg(places + from), (int)__ldg(ends + min(from + 63, piece.rows - 1)) - piece.row0);
      u32 of[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) of[k][j] = i ? q[PARTS - 1][k][j] : q[0][k][j];
      attend<T, DIM>(p, of, keys, i ? sequences[PARTS - 1] : sequences[0], i * 64 + row, piece.rows, blocks, context);
    }
    give_operands();
  }
}

#define ENTRY(T, name, DIM, KEEP, keep, TURNS, way)                                                 \
  extern "C" __global__ void __launch_bounds__(384, 1)                                              \
      self_attention##DIM##_##keep##_##way##_##name(const __grid_constant__ SelfAttentionArgs p) {  \
    self_attention<T, DIM, KEEP, TURNS>(p);                                                         \
  }
#define ENTRIES(T, name, DIM)                         \
  ENTRY(T, name, DIM, true, keep, false, shared)      \
  ENTRY(T, name, DIM, true, keep, true, turns)        \
  ENTRY(T, name, DIM, false, stream, false, shared)   \
  ENTRY(T, name, DIM, false, stream, true, turns)
#define FORMAT(T, name)  \
  ENTRIES(T, name, 32)   \
  ENTRIES(T, name, 64)
FORMAT(Half, f16)
FORMAT(Bf16, bf16)
#endif
