// Attention over packed sequences of any length for Hopper (Dao 2023; Shah et al. 2024):
//
//   context = softmax(q * k^T * scale) * v
//
// A piece of work is 128 queries of one sequence and 64 columns: a head of 64 or two of 32. The copy
// engine brings the queries once, and keys and values 128 at a time in a ring; two warpgroups take 64
// of the queries each. While the tensor cores multiply weights by values, the warpgroup makes the next
// keys' weights, and while it has neither, the other one has. Blocks go on to their next piece, whose
// queries and first keys are there by then.
//
// The two numbers, for a query and a key of a head of 64: 256 FLOP, a sixteenth of a cycle of the
// multiprocessor's tensor cores, and one exponential, also a sixteenth of a cycle; from the L2 cache
// 2 bytes for a query and a key of 64 queries' worth. With heads of 32 the exponentials are the limit.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "softmax.cuh"
#include "warpgroup.cuh"

struct FlashAttentionArgs {
  TensorMap qkv; // 128 rows
  void* context;
  const Batch* batch; // its items are of 128 queries
  int width;          // of queries, of keys and of values: a multiple of 64
  int stride;         // of the context
  int window;         // negative for none
  float scale;
};

constexpr int QUERIES = 128, KEYS = 128, COLUMNS = 64, STAGES = 4;
constexpr int TILE_BYTES = 128 * COLUMNS * 2;

struct Work {
  int column, q0, length, k0, high, tiles; // of keys: from `k0` to before `high`
  u32 start;
  DEVICE Work(const FlashAttentionArgs& p, int index) {
    int across = p.width / COLUMNS;
    uint4 item = __ldg((const uint4*)part(p.batch, p.batch->work) + index / across);
    column = index % across * COLUMNS;
    start = item.x;
    length = item.y;
    q0 = item.z;
    k0 = p.window < 0 ? 0 : max(0, q0 - p.window);
    high = p.window < 0 ? length : min(length, q0 + QUERIES + p.window);
    tiles = (high - k0 + KEYS - 1) / KEYS;
  }
};

// Rows of values behind the last one that is seen become zeros: they are other sequences', and a
// weight of zero would not undo what is no number. Both warpgroups do it, each before it reads them.
DEVICE void clear_rows(u32 values, int first, int group) {
  int thread = threadIdx.x % 128;
  for (int row = first + thread / 8; row < KEYS; row += 16)
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(values + row * 128 + thread % 8 * 16), "r"(0) : "memory");
  publish();
  named_sync(1 + group, 128);
}

template <class T, int DIM> DEVICE void flash_attention(const FlashAttentionArgs& p) {
  constexpr int HEADS = COLUMNS / DIM, STEPS = DIM / 16;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[4 * STAGES + 4];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 queries = shared_address(memory), keys = queries + 2 * TILE_BYTES, values = keys + STAGES * TILE_BYTES;
  u32 k_full = shared_address(barriers), k_empty = k_full + 8 * STAGES, v_full = k_empty + 8 * STAGES;
  u32 v_empty = v_full + 8 * STAGES, q_full = v_empty + 8 * STAGES, q_empty = q_full + 16;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, 8);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(v_empty + 8 * i, 8);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(q_full + 8 * i, 1);
      barrier_init(q_empty + 8 * i, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release_next();
  int works = p.batch->items * (p.width / COLUMNS);
  auto slot_of = [](u32 count) { return count % STAGES; };
  auto phase_of = [](u32 count) { return count / STAGES & 1; };

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8 && lane == 0) {
      wait_for_previous();
      u32 count = 0, turn = 0; // tiles of keys, and works so far
      for (int index = blockIdx.x; index < works; index += gridDim.x, ++turn) {
        Work work(p, index);
        auto fetch = [&](u32 to, u32 full, int column, int row) {
          expect_bytes(full, TILE_BYTES);
          fetch_tile(to, &p.qkv, column + work.column, work.start + row, full);
        };
        u32 at = turn & 1;
        barrier_wait(q_empty + 8 * at, turn / 2 & 1 ^ 1);
        fetch(queries + at * TILE_BYTES, q_full + 8 * at, 0, work.q0);
        for (int tile = 0; tile < work.tiles; ++tile, ++count) {
          u32 slot = slot_of(count), phase = phase_of(count) ^ 1;
          int row = work.k0 + tile * KEYS;
          barrier_wait(k_empty + 8 * slot, phase);
          fetch(keys + slot * TILE_BYTES, k_full + 8 * slot, p.width, row);
          barrier_wait(v_empty + 8 * slot, phase);
          fetch(values + slot * TILE_BYTES, v_full + 8 * slot, 2 * p.width, row);
        }
      }
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  int group = warp / 4;
  u32 count = 0, turn = 0;
  auto arrive = [&](u32 at) {
    if (lane == 0) barrier_arrive(at);
  };
  // A group asks for its products when the other has asked for its own, so that it gets them when the
  // other is through, and the other makes weights in the meantime.
  auto take_turn = [&] { asm volatile("bar.sync %0, 256;" ::"r"(3 + group) : "memory"); };
  auto give_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); };
  if (group == 1) give_turn();
#pragma unroll 1
  for (int index = blockIdx.x; index < works; index += gridDim.x, ++turn) {
    Work work(p, index);
    u32 q_at = turn & 1;
    barrier_wait(q_full + 8 * q_at, turn / 2 & 1);
    if (work.q0 + group * 64 >= work.length) { // the sequence has no queries for this group
      arrive(q_empty + 8 * q_at);
#pragma unroll 1
      for (int tile = 0; tile < work.tiles; ++tile, ++count) {
        u32 slot = slot_of(count);
        barrier_wait(k_full + 8 * slot, phase_of(count));
        arrive(k_empty + 8 * slot);
        barrier_wait(v_full + 8 * slot, phase_of(count));
        arrive(v_empty + 8 * slot);
#pragma unroll
        for (int head = 0; head < HEADS; ++head) {
          take_turn();
          give_turn();
        }
      }
      continue;
    }
    int row = work.q0 + group * 64 + warp % 4 * 16 + lane / 4, from[2], to[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      from[h] = p.window < 0 ? 0 : max(0, row + 8 * h - p.window);
      to[h] = p.window < 0 ? work.length : min(work.length, row + 8 * h + p.window + 1);
    }
    u64 q = descriptor_swizzled(queries + q_at * TILE_BYTES + group * 64 * 128);
    float scale = p.scale * LOG2E;
    float s[KEYS / 2], out[HEADS][DIM / 2] = {}, top[HEADS][2], sum[HEADS][2], shrink[2];
    u32 weights[KEYS / 16][4];
#pragma unroll
    for (int head = 0; head < HEADS; ++head)
#pragma unroll
      for (int h = 0; h < 2; ++h) top[head][h] = -1e30f, sum[head][h] = 0.f;

    // s = q * k^T of a head.
    auto score = [&](u32 slot, int head) {
      u64 k = descriptor_swizzled(keys + slot * TILE_BYTES);
      warpgroup_arrive();
#pragma unroll
      for (int kk = 0; kk < STEPS; ++kk)
        warpgroup_mma_shared<T, KEYS>(s, q + 2 * (head * STEPS + kk), k + 2 * (head * STEPS + kk), kk > 0);
      warpgroup_commit();
    };
    // out += weights * v of a head.
    auto collect = [&](u32 slot, int head) {
      u64 v = descriptor_swizzled(values + slot * TILE_BYTES);
      warpgroup_arrive();
#pragma unroll
      for (int kk = 0; kk < KEYS / 16; ++kk)
        warpgroup_mma_across<T, DIM>(out[head], weights[kk], v + 2 * head * STEPS + kk * (16 * 128 / 16), 1);
      warpgroup_commit();
    };
    auto pack = [&] {
#pragma unroll
      for (int kk = 0; kk < KEYS / 16; ++kk)
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[kk][i] = Format<T>::pack(s[8 * kk + 2 * i], s[8 * kk + 2 * i + 1]);
    };

    u32 slot = slot_of(count);
    barrier_wait(k_full + 8 * slot, phase_of(count));
    score(slot, 0);
    warpgroup_wait<0>();
    if (HEADS == 1) arrive(k_empty + 8 * slot);
    soften<KEYS>(s, top[0], sum[0], shrink, work.k0, from, to, scale);
    pack();
#pragma unroll 1
    for (int tile = 0; tile < work.tiles; ++tile, ++count) {
      bool last = tile + 1 == work.tiles;
      int k0 = work.k0 + tile * KEYS;
      u32 next = slot_of(count + 1);
      slot = slot_of(count);
      barrier_wait(v_full + 8 * slot, phase_of(count));
      if (last && work.high - k0 < KEYS) clear_rows(values + slot * TILE_BYTES, work.high - k0, group);
#pragma unroll
      for (int head = 0; head < HEADS; ++head) {
        // Scores of what comes next, be it this tile's next head or the next tile.
        int other = (head + 1) % HEADS;
        if (other == 0 && last) {
          take_turn();
          collect(slot, head);
          give_turn();
          warpgroup_wait<0>();
          break;
        }
        u32 from_slot = other ? slot : next;
        if (other == 0) barrier_wait(k_full + 8 * next, phase_of(count + 1));
        take_turn();
        score(from_slot, other);
        collect(slot, head);
        give_turn();
        warpgroup_wait<1>();
        if (other == HEADS - 1) arrive(k_empty + 8 * from_slot);
        soften<KEYS>(s, top[other], sum[other], shrink, other ? k0 : k0 + KEYS, from, to, scale);
        warpgroup_wait<0>();
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) out[other][i] *= shrink[i / 2 % 2];
        pack();
      }
      arrive(v_empty + 8 * slot);
    }
    arrive(q_empty + 8 * q_at);
    T* context = (T*)p.context + (u64)work.start * p.stride + work.column;
#pragma unroll
    for (int head = 0; head < HEADS; ++head)
      store_context<T, DIM>(context + head * DIM, p.stride, out[head], sum[head], row, work.length);
  }
}

#define ENTRY(T, name, DIM)                                                                       \
  extern "C" __global__ void __launch_bounds__(384, 1)                                            \
      flash_attention##DIM##_##name(const __grid_constant__ FlashAttentionArgs p) {               \
    flash_attention<T, DIM>(p);                                                                   \
  }
ENTRY(Half, f16, 32)
ENTRY(Half, f16, 64)
ENTRY(Bf16, bf16, 32)
ENTRY(Bf16, bf16, 64)
#endif
