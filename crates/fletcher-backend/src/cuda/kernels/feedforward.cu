// What lies between two attentions, as one kernel for Hopper, for states 384 wide:
//
//   middle = norm(context * O^T + o + hidden)
//   hidden = norm(gelu(middle * U^T + u) * D^T + d + middle)      qkv = hidden * Q^T + q
//
// A block has 128 rows, 64 to each of its two warpgroups. A thread holds two rows' worth of 384
// columns of sums from the first product to the end of the third, in 192 of its 255 registers; what is
// between, 64 columns of the network's inner state at a time, passes through 32 others and goes back
// to the tensor cores from there. So the inner state, four times as wide as the rows, never leaves the
// registers, and `middle` never leaves the block: it is the second product's operand in shared memory
// and the residual in the sums.
//
// Weights come in a ring of slots, in their order of use. The warpgroups take turns at two slots each,
// so that one's GELU or epilogue runs beside the other's products. There are no registers left for a
// warp that does nothing but fill the ring: warps of the second warpgroup, which is the last to read a
// slot, ask for what comes into it next.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "rows.cuh"

struct FeedForwardArgs {
  TensorMap x, state, qkv, up; // three neighbouring tiles of 64 rows at a time
  TensorMap out, down, next;   // one of 192 rows
  const float *out_bias, *scale1, *shift1, *up_bias, *down_bias, *scale2, *shift2, *next_bias;
  const Batch* batch;
  int k;       // columns of x, a multiple of 64 up to 384
  int inner;   // a multiple of 64
  int columns; // of qkv, a multiple of 192; 0 behind the last layer
  float eps1, eps2;
};

constexpr int SLOTS = 5, SLOT_BYTES = HALF * 128;
// For each warpgroup: rows of x, then of `middle`, then on their way out of `hidden` and of qkv; in
// tiles of 64 columns.
constexpr int SMALL_TILE = 64 * 128, OWN_BYTES = BLOCKS * SMALL_TILE, THREE_TILES = 3 * SMALL_TILE;
// Parameters: first the first norm's and the bias of the inner state, later the others.
constexpr int SCALE1 = 0, SHIFT1 = 384, UP_BIAS = 768;
constexpr int SCALE2 = 0, SHIFT2 = 384, DOWN_BIAS = 768, NEXT_BIAS = 1152;
// Slots of the residual: for each warpgroup two of three tiles.
constexpr int STATE_SLOTS = 4;

struct Slot {
  u32 at, phase;
  DEVICE Slot next() const {
    Slot slot = *this;
    if (++slot.at == SLOTS) {
      slot.at = 0;
      slot.phase ^= 1;
    }
    return slot;
  }
};

// Where things are in shared memory: the barriers of slots, filled and read; of three tiles of x; of
// the parameters, there and read.
struct Places {
  u32 rows, slots, parameters, full, empty, x_full, parameters_full, parameters_read;
  int first_step, first_chunk, first_across; // of the weights' parts, where this block begins
  DEVICE u32 of(Slot slot) const { return slots + slot.at * SLOT_BYTES; }
  DEVICE void wait(Slot slot) const { barrier_wait(full + 8 * slot.at, slot.phase); }
};

DEVICE void fetch_floats(u32 to, const float* from, int count, u32 full) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(4 * count), "r"(full) : "memory");
}
DEVICE void fetch_tiles(u32 to, const TensorMap* map, int tile, int row, u32 full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
          to),
      "l"(map), "r"(full), "r"(0), "r"(row), "r"(tile) : "memory");
}
DEVICE void send_tiles(const TensorMap* map, int tile, int row, u32 from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from),
               "r"(0), "r"(row), "r"(tile) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Fills a slot, for a whole warp to call: were a branch to choose the thread, everything behind it
// would be taken for what lanes may differ in, and kept out of the uniform registers.
DEVICE void fill(const Places& at, u32 slot, const TensorMap* map, int tile, int row) {
  asm volatile(
      "{ .reg .pred p; .reg .b32 r;\n"
      "elect.sync r|p, 0xffffffff;\n"
      "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%2], %6;\n"
      "@p cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2]; }" ::"r"(
          at.slots + slot * SLOT_BYTES),
      "l"(map), "r"(at.full + 8 * slot), "r"(0), "r"(row), "r"(tile), "r"(SLOT_BYTES) : "memory");
}

// The `i`th of `count` parts of weights.
DEVICE int part_at(int first, int i, int count) { return first + i < count ? first + i : first + i - count; }

// What the `i`th slot of all holds; there may be none. It is found without branches, so that what
// follows is known to be uniform.
DEVICE void fill_any(const FeedForwardArgs& p, const Places& at, u32 slot, int i) {
  int steps = p.k / 64, chunks = p.inner / 64, across = p.columns / HALF;
  int of_state = i - 2 * steps, of_network = of_state - STATE_SLOTS, of_next = of_network - 4 * chunks;
  const TensorMap* map = &p.out;
  int tile = part_at(at.first_step, i / 2, steps), row = i % 2 * HALF;
  if (of_state >= 0) map = &p.state, tile = of_state % 2 * 3, row = blockIdx.x * ROWS + of_state / 2 * 64;
  int c = part_at(at.first_chunk, of_network / 4, chunks);
  bool up = of_network % 4 < 2;
  if (of_network >= 0) map = up ? &p.up : &p.down, tile = up ? of_network % 2 * 3 : c, row = up ? c * 64 : of_network % 2 * HALF;
  int n = part_at(at.first_across, of_next / BLOCKS, across);
  if (of_next >= 0) map = &p.next, tile = of_next % BLOCKS, row = n * HALF;
  if (of_next < BLOCKS * across) fill(at, slot, map, tile, row);
}

// Everything that can be asked for at the start; for a whole warp.
DEVICE void begin(const FeedForwardArgs& p, const Places& at) {
  bool first = threadIdx.x % 32 == 0;
  if (first) {
    expect_bytes(at.parameters_full, 4 * (2 * WIDTH + p.inner));
    fetch_floats(at.parameters + 4 * SCALE1, p.scale1, WIDTH, at.parameters_full);
    fetch_floats(at.parameters + 4 * SHIFT1, p.shift1, WIDTH, at.parameters_full);
    fetch_floats(at.parameters + 4 * UP_BIAS, p.up_bias, p.inner, at.parameters_full);
  }
  __syncwarp();
  // Weights are nobody else's to write: the first of them do not wait.
  int early = min(SLOTS, p.k / 32);
#pragma unroll 1
  for (int i = 0; i < early; ++i) fill_any(p, at, i, i);
  wait_for_previous();
  if (first)
#pragma unroll 1
    for (int three = 0; three * 192 < p.k; ++three) {
      expect_bytes(at.x_full + 8 * three, 2 * THREE_TILES);
      for (int group = 0; group < 2; ++group)
        fetch_tiles(at.rows + group * OWN_BYTES + three * THREE_TILES, &p.x, three * 3, blockIdx.x * ROWS + group * 64,
                    at.x_full + 8 * three);
    }
  __syncwarp();
#pragma unroll 1
  for (int i = early; i < SLOTS; ++i) fill_any(p, at, i, i);
}
// The second half of the parameters, when all have read the first.
DEVICE void fetch_second(const FeedForwardArgs& p, const Places& at) {
  barrier_wait(at.parameters_read, 0);
  expect_bytes(at.parameters_full, 4 * (3 * WIDTH + p.columns));
  fetch_floats(at.parameters + 4 * SCALE2, p.scale2, WIDTH, at.parameters_full);
  fetch_floats(at.parameters + 4 * SHIFT2, p.shift2, WIDTH, at.parameters_full);
  fetch_floats(at.parameters + 4 * DOWN_BIAS, p.down_bias, WIDTH, at.parameters_full);
  if (p.columns) fetch_floats(at.parameters + 4 * NEXT_BIAS, p.next_bias, p.columns, at.parameters_full);
}

// Mean and deviation of the thread's two rows, as a factor and a shift.
DEVICE void measure(float (&factor)[2], float (&shift)[2], const float (&d0)[HALF / 2], const float (&d1)[HALF / 2], float eps) {
  float mean[2] = {};
  factor[0] = factor[1] = 0.f;
  add_up(mean, d0);
  add_up(mean, d1);
#pragma unroll
  for (int h = 0; h < 2; ++h) mean[h] = quad_sum(mean[h]) * (1.f / WIDTH);
  add_squares(factor, d0, mean);
  add_squares(factor, d1, mean);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    factor[h] = rsqrtf(quad_sum(factor[h]) * (1.f / WIDTH) + eps);
    shift[h] = -mean[h] * factor[h];
  }
}

// 16 columns of a warp's rows into three tiles, swizzled.
struct Layer {
  u32 to, column;
  DEVICE Layer(u32 tiles, int row) : to(tiles), column(0) {
    u32 lane = lane_now();
    row += lane % 16;
    to += row * 128;
    column = ((lane / 16) ^ (row & 7)) << 4;
  }
  DEVICE void lay(int k, u32 a, u32 b, u32 c, u32 d) const {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to + k / 4 * SMALL_TILE +
                                                                                      (column ^ (k % 4 * 32))),
                 "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
  }
};

// Half of the rows normalised in place, for the residual sum, and in shared memory, as an operand.
template <class T, int WHICH>
DEVICE void normalise_and_lay(float (&d)[HALF / 2], const float (&factor)[2], const float (&shift)[2], u32 parameters,
                              const Layer& layer) {
  parameters += WHICH * HALF * 4 + lane_now() % 4 * 8;
#pragma unroll
  for (int k = 0; k < HALF / 16; ++k) {
    u32 w[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int j = 2 * k + i;
      float2 s = pair_at(parameters + 4 * SCALE1, j), b = pair_at(parameters + 4 * SHIFT1, j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& x = d[4 * j + 2 * h];
        float& y = d[4 * j + 2 * h + 1];
        x = fmaf(fmaf(x, factor[h], shift[h]), s.x, b.x);
        y = fmaf(fmaf(y, factor[h], shift[h]), s.y, b.y);
        w[2 * i + h] = Format<T>::pack(x, y);
      }
    }
    layer.lay(WHICH * (HALF / 16) + k, w[0], w[1], w[2], w[3]);
  }
}

DEVICE void begin_with(float (&d)[HALF / 2], const float* bias) {
#pragma unroll
  for (int j = 0; j < HALF / 8; ++j) {
    float2 b = __ldg((const float2*)(bias + 8 * j + lane_now() % 4 * 2));
    d[4 * j] = d[4 * j + 2] = b.x;
    d[4 * j + 1] = d[4 * j + 3] = b.y;
  }
}
DEVICE void add_bias(float (&d)[HALF / 2], u32 bias) {
  bias += lane_now() % 4 * 8;
#pragma unroll
  for (int j = 0; j < HALF / 8; ++j) {
    float2 b = pair_at(bias, j);
    d[4 * j] += b.x, d[4 * j + 2] += b.x;
    d[4 * j + 1] += b.y, d[4 * j + 3] += b.y;
  }
}

// Warpgroups take turns.
DEVICE void take_turn(int group) { named_sync(3 + group, 256); }
DEVICE void give_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); }

template <class T> DEVICE void feedforward(const FeedForwardArgs& p, const Places& at) {
  // Every lane's warp is the first one's: said so that what follows from it is known to be uniform.
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / 4, row = warp % 4 * 16;
  u32 own = at.rows + group * OWN_BYTES;
  Slot now = {0, 0};
  // Gives back the next slots; warps of the second group have them filled when all have done so.
  auto release = [&](auto... ask) {
    constexpr int COUNT = sizeof...(ask);
    Slot slots[COUNT + 1] = {now};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) slots[i + 1] = slots[i].next();
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) barrier_arrive(at.empty + 8 * slots[i].at);
    }
    int i = 0;
    auto have_filled = [&](auto ask_one) {
      if (warp == 4 + i) {
        barrier_wait(at.empty + 8 * slots[i].at, slots[i].phase);
        ask_one(slots[i].at);
      }
      ++i;
    };
    (have_filled(ask), ...);
    now = slots[COUNT];
  };
  auto any = [&](int i) { return [&p, &at, i](u32 slot) { fill_any(p, at, slot, i); }; };

  float d0[HALF / 2], d1[HALF / 2];
  if (group == 1) give_turn(group);
  begin_with(d0, p.out_bias);
  begin_with(d1, p.out_bias + HALF);
  int steps = p.k / 64, chunks = p.inner / 64, across = p.columns / HALF;
#pragma unroll 1
  for (int step = 0, k = at.first_step; step < steps; ++step, k = next_of(k, steps)) {
    barrier_wait(at.x_full + 8 * (k / 3), 0);
    at.wait(now);
    take_turn(group);
    u64 a = descriptor_swizzled(own + k * SMALL_TILE);
    multiply<T>(d0, a, descriptor_swizzled(at.of(now)));
    at.wait(now.next());
    multiply<T>(d1, a, descriptor_swizzled(at.of(now.next())));
    give_turn(group);
    warpgroup_wait<0>();
    release(any(2 * step + SLOTS), any(2 * step + SLOTS + 1));
  }

  // Two slots each; waiting for all of them keeps the warps together.
  Slot second = now.next(), third = second.next(), fourth = third.next();
  at.wait(now);
  at.wait(second);
  at.wait(third);
  at.wait(fourth);
  u32 from = group ? at.of(third) : at.of(now);
  add_tile<T, 0>(d0, from, row);
  add_tile<T, 1>(d0, from + SMALL_TILE, row);
  add_tile<T, 2>(d0, from + 2 * SMALL_TILE, row);
  from = group ? at.of(fourth) : at.of(second);
  add_tile<T, 0>(d1, from, row);
  add_tile<T, 1>(d1, from + SMALL_TILE, row);
  add_tile<T, 2>(d1, from + 2 * SMALL_TILE, row);
  __syncwarp();
  int base = 2 * steps + SLOTS;
  release(any(base), any(base + 1), any(base + 2), any(base + 3));
  base += STATE_SLOTS;
  float factor[2], shift[2];
  measure(factor, shift, d0, d1, p.eps1);
  barrier_wait(at.parameters_full, 0);
  named_sync(1 + group, 128); // all of the group's warps have read x
  Layer layer(own, row);
  normalise_and_lay<T, 0>(d0, factor, shift, at.parameters, layer);
  normalise_and_lay<T, 1>(d1, factor, shift, at.parameters, layer);
  publish();
  named_sync(1 + group, 128);

#pragma unroll 1
  for (int i = 0, c = at.first_chunk; i < chunks; ++i, c = next_of(c, chunks), base += 4) {
    float inner[32];
    begin_with<64>(inner, at.parameters + 4 * UP_BIAS + c * 256);
    at.wait(now);
    take_turn(group);
    warpgroup_arrive();
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
      if (block == 3) at.wait(now.next());
      u64 a = descriptor_swizzled(own + block * SMALL_TILE);
      u64 b = descriptor_swizzled(at.of(block < 3 ? now : now.next()) + block % 3 * SMALL_TILE);
#pragma unroll
      for (int k = 0; k < 4; ++k) warpgroup_mma_shared<T, 64>(inner, a + 2 * k, b + 2 * k, 1);
    }
    warpgroup_commit();
    give_turn(group);
    warpgroup_wait<0>();
    // Five slots on, and six, are parts of the next chunk, mostly.
    int next = next_of(c, chunks), after = next_of(next, chunks);
    if (i + 2 < chunks)
      release([&](u32 slot) { fill(at, slot, &p.up, 3, next * 64); }, [&](u32 slot) { fill(at, slot, &p.down, next, 0); });
    else release(any(base), any(base + 1));
    if (i + 1 == chunks) {
      if (threadIdx.x % 32 == 0) barrier_arrive(at.parameters_read);
      if (threadIdx.x == 192) fetch_second(p, at);
      __syncwarp();
    }

    u32 a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        a[k][j] = Format<T>::pack(gelu(inner[8 * k + 2 * j]), gelu(inner[8 * k + 2 * j + 1]));
    at.wait(now);
    take_turn(group);
    warpgroup_arrive();
    u64 b = descriptor_swizzled(at.of(now));
#pragma unroll
    for (int k = 0; k < 4; ++k) warpgroup_mma<T, HALF>(d0, a[k], b + 2 * k, 1);
    at.wait(now.next());
    b = descriptor_swizzled(at.of(now.next()));
#pragma unroll
    for (int k = 0; k < 4; ++k) warpgroup_mma<T, HALF>(d1, a[k], b + 2 * k, 1);
    warpgroup_commit();
    give_turn(group);
    warpgroup_wait<0>();
    if (i + 2 < chunks)
      release([&](u32 slot) { fill(at, slot, &p.down, next, HALF); }, [&](u32 slot) { fill(at, slot, &p.up, 0, after * 64); });
    else release(any(base + 2), any(base + 3));
  }

  barrier_wait(at.parameters_full, 1);
  add_bias(d0, at.parameters + 4 * DOWN_BIAS);
  add_bias(d1, at.parameters + 4 * DOWN_BIAS + 4 * HALF);
  measure(factor, shift, d0, d1, p.eps2);
  u32 normed[WIDTH / 4];
  normalise<T, 0>(normed, d0, factor, shift, at.parameters + 4 * SCALE2, at.parameters + 4 * SHIFT2);
  normalise<T, 1>(normed, d1, factor, shift, at.parameters + 4 * SCALE2, at.parameters + 4 * SHIFT2);
  // Out by way of shared memory, where nobody reads `middle` any more.
  bool sends = threadIdx.x % 128 == 0;
  int first = blockIdx.x * ROWS + group * 64;
#pragma unroll
  for (int k = 0; k < WIDTH / 16; ++k) Layer(own, row).lay(k, normed[4 * k], normed[4 * k + 1], normed[4 * k + 2], normed[4 * k + 3]);
  publish();
  named_sync(1 + group, 128);
  if (sends) {
    send_tiles(&p.state, 0, first, own);
    send_tiles(&p.state, 3, first, own + THREE_TILES);
  }
#pragma unroll 1
  for (int i = 0, n = at.first_across; i < across; ++i, n = next_of(n, across)) {
    float d[HALF / 2];
    begin_with<HALF>(d, at.parameters + 4 * NEXT_BIAS + n * (HALF * 4));
    int next = next_of(n, across) * HALF;
    auto part_of_next = [&](int block) {
      return [&at, &p, next, block, more = i + 1 < across](u32 slot) {
        if (more) fill(at, slot, &p.next, block, next);
      };
    };
#pragma unroll
    for (int block = 0; block < BLOCKS; block += 2) {
      at.wait(now);
      take_turn(group);
      warpgroup_arrive();
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if (k == 4) at.wait(now.next());
        int from = 16 * block + 4 * k;
        u32 a[4] = {normed[from], normed[from + 1], normed[from + 2], normed[from + 3]};
        warpgroup_mma<T, HALF>(d, a, descriptor_swizzled(at.of(k < 4 ? now : now.next())) + 2 * (k % 4), 1);
      }
      warpgroup_commit();
      give_turn(group);
      warpgroup_wait<0>();
      if (block == 0) release([&](u32 slot) { fill(at, slot, &p.next, 5, n * HALF); }, part_of_next(0));
      if (block == 2) release(part_of_next(1), part_of_next(2));
      if (block == 4) release(part_of_next(3), part_of_next(4));
    }
    // The tiles have been read from which the last but one was sent.
    if (sends) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
    named_sync(1 + group, 128);
    Layer out(own + i % 2 * THREE_TILES, row);
#pragma unroll
    for (int k = 0; k < HALF / 16; ++k)
      out.lay(k, Format<T>::pack(d[8 * k], d[8 * k + 1]), Format<T>::pack(d[8 * k + 2], d[8 * k + 3]),
              Format<T>::pack(d[8 * k + 4], d[8 * k + 5]), Format<T>::pack(d[8 * k + 6], d[8 * k + 7]));
    publish();
    named_sync(1 + group, 128);
    if (sends) send_tiles(&p.qkv, 3 * n, first, own + i % 2 * THREE_TILES);
  }
  if (sends) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

template <class T> DEVICE void feedforward(const FeedForwardArgs& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Places at;
  at.rows = shared_address(memory);
  at.slots = at.rows + 2 * OWN_BYTES;
  at.full = at.slots + SLOTS * SLOT_BYTES;
  at.empty = at.full + 8 * SLOTS;
  at.x_full = at.empty + 8 * SLOTS;
  at.parameters_full = at.x_full + 8 * 2;
  at.parameters_read = at.parameters_full + 8;
  at.parameters = at.parameters_read + 8; // a multiple of 16
  at.first_step = first_of_four(p.k / 64);
  at.first_chunk = first_of_four(p.inner / 64);
  at.first_across = first_of_four(p.columns / HALF);
  if (threadIdx.x == 128) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(at.full + 8 * i, 1);
      barrier_init(at.empty + 8 * i, 8);
    }
    for (int i = 0; i < 2; ++i) barrier_init(at.x_full + 8 * i, 1);
    barrier_init(at.parameters_full, 1);
    barrier_init(at.parameters_read, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release_next();
  if (threadIdx.x / 32 == 4) begin(p, at);
  feedforward<T>(p, at);
}

extern "C" __global__ void __launch_bounds__(256, 1) feedforward_f16(const __grid_constant__ FeedForwardArgs p) {
  feedforward<Half>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1) feedforward_bf16(const __grid_constant__ FeedForwardArgs p) {
  feedforward<Bf16>(p);
}
#endif
