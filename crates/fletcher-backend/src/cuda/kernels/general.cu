// The operations of the encoder for every card since compute capability 8.0 and every spec.
//
// Rows of all matrices begin at multiples of 16 bytes. Columns between a matrix's width and its
// stride are zeros, in weights and activations alike, so that no loop has to know the width.
#include "attention.cuh"
#include "common.cuh"

// ---------------------------------------------------------------------------------------------
// Embedding and LayerNorm: a warp per token.
//
// A row of up to 1024 columns is held in registers, so that the embedding's norm reads nothing;
// a wider row's norm reads it three times, twice from the L1 cache.

struct NormArgs {
  const void* in;
  void* out;
  const float* scale; // zeros behind the width
  const float* bias;  // null for none
  const Batch* batch;
  int width, stride;
  float eps;
};

constexpr int HELD = 4; // times 256 columns

template <class T> DEVICE void norm_held(const NormArgs& p, u32 token, float (&v)[HELD][8]) {
  T* out = (T*)p.out + (u64)token * p.stride;
  float sum = 0.f, squares = 0.f;
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    if ((lane + 32 * i) * 8 >= p.stride) break;
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += v[i][e]; // what lies behind the width is zero
  }
  float mean = warp_sum(sum) / p.width;
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    int c = (lane + 32 * i) * 8;
    if (c >= p.stride) break;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      v[i][e] = c + e < p.width ? v[i][e] - mean : 0.f;
      squares += v[i][e] * v[i][e];
    }
  }
  float factor = 1.f / sqrtf(warp_sum(squares) / p.width + p.eps);
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    int c = (lane + 32 * i) * 8;
    if (c >= p.stride) break;
    float scale[8], bias[8] = {};
    load8(p.scale + c, scale);
    if (p.bias) load8(p.bias + c, bias);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[i][e] = v[i][e] * factor * scale[e] + bias[e];
    store8(out + c, v[i]);
  }
}

template <class T> DEVICE void norm_read(const NormArgs& p, u32 token) {
  const T* in = (const T*)p.in + (u64)token * p.stride;
  T* out = (T*)p.out + (u64)token * p.stride;
  int first = 2 * (threadIdx.x % 32);
  float a, b, sum = 0.f, squares = 0.f;
  for (int c = first; c < p.stride; c += 64) {
    load2(in + c, a, b);
    sum += a + b; // what lies behind the width is zero
  }
  float mean = warp_sum(sum) / p.width;
  for (int c = first; c < p.width; c += 64) {
    load2(in + c, a, b);
    a -= mean;
    b = c + 1 < p.width ? b - mean : 0.f;
    squares += a * a + b * b;
  }
  float factor = 1.f / sqrtf(warp_sum(squares) / p.width + p.eps);
  for (int c = first; c < p.stride; c += 64) {
    load2(in + c, a, b);
    a = (a - mean) * factor * p.scale[c] + (p.bias ? p.bias[c] : 0.f);
    b = (b - mean) * factor * p.scale[c + 1] + (p.bias ? p.bias[c + 1] : 0.f);
    store2(out + c, a, b);
  }
}

template <class T> DEVICE void norm(const NormArgs& p) {
  u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (token >= p.batch->tokens) return;
  if (p.stride > HELD * 256) return norm_read<T>(p, token);
  const T* in = (const T*)p.in + (u64)token * p.stride;
  float v[HELD][8];
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    int c = (threadIdx.x % 32 + 32 * i) * 8;
    if (c < p.stride) load8(in + c, v[i]);
  }
  norm_held<T>(p, token, v);
}

struct EmbedArgs {
  const void* word;
  const void* position;   // null for models without
  const void* token_type; // null for models without
  NormArgs norm;          // the sum itself is stored where this has no scale
};

template <class T> DEVICE void embed(const EmbedArgs& p) {
  u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const Batch* batch = p.norm.batch;
  if (token >= batch->tokens) return;
  int stride = p.norm.stride;
  u64 id = part(batch, batch->ids)[token], position = part(batch, batch->positions)[token];
  const T* word = (const T*)p.word + id * stride;
  const T* place = (const T*)p.position + position * stride;
  const T* type = (const T*)p.token_type;
  T* out = (T*)p.norm.out + (u64)token * stride;
  auto sum_at = [&](int c, float (&v)[8]) {
    float other[8];
    load8(word + c, v);
    if (p.position) {
      load8(place + c, other);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += other[e];
    }
    if (p.token_type) {
      load8(type + c, other);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += other[e];
    }
  };
  if (p.norm.scale && stride <= HELD * 256) {
    float v[HELD][8];
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      int c = (threadIdx.x % 32 + 32 * i) * 8;
      if (c < stride) sum_at(c, v[i]);
    }
    return norm_held<T>(p.norm, token, v);
  }
  for (int c = 8 * (threadIdx.x % 32); c < stride; c += 256) {
    float v[8];
    sum_at(c, v);
    store8(out + c, v);
  }
  if (p.norm.scale) {
    __syncwarp();
    norm_read<T>(p.norm, token);
  }
}

// ---------------------------------------------------------------------------------------------
// Linear layer: y = epilogue(x * W^T + bias). A block makes a 128x128 tile of y with 8 warps of
// 64x32; tiles of x and W of 128 rows and 128 bytes pass through three stages of shared memory,
// swizzled so that neither the copies nor the fragment loads meet a bank conflict.

enum Epilogue { STORE = 0, ACCUMULATE = 1, GELU = 2, ACTIVATE = 3, GATE = 4 };

struct LinearArgs {
  const void* x;
  const void* w;
  const float* bias; // null for none
  void* y;
  const Batch* batch;
  int rows;    // of W
  int k;       // columns of x and W, and their stride
  int columns; // of y before gating: everything up to its stride
  int stride;  // of y
  int activation;
};

constexpr int TILE = 128, ROW_BYTES = 128, STAGES = 3, STAGE_BYTES = 2 * TILE * ROW_BYTES;
constexpr int SUMS_STRIDE = TILE + 4;

DEVICE u32 swizzled(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4); }

template <class T> struct Multiply;

template <class T> struct Multiply16 {
  static DEVICE void step(float (&acc)[4][4][4], float (&)[4][4][4], u32 xs, u32 ws, int lane) {
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      u32 a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) ldmatrix(a[i], xs + swizzled(i * 16 + lane % 16, 2 * kk + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        ldmatrix(b[j], ws + swizzled(j * 16 + lane % 8 + (lane / 16) * 8, 2 * kk + (lane / 8) % 2));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<T>(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
};
template <> struct Multiply<Half> : Multiply16<Half> {};
template <> struct Multiply<Bf16> : Multiply16<Bf16> {};

DEVICE float shared_float(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

// The tensor cores round towards zero whenever they add to a sum: the products with a low half have
// sums of their own, so that those of the high halves are rounded once for three products.
template <> struct Multiply<float> {
  static DEVICE void step(float (&acc)[4][4][4], float (&small)[4][4][4], u32 xs, u32 ws, int lane) {
    int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      u32 bh[4][2], bl[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          split_tf32(shared_float(ws + swizzled(j * 8 + g, 2 * kk + h) + 4 * t), bh[j][h], bl[j][h]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        u32 ah[4], al[4];
#pragma unroll
        for (int q = 0; q < 4; ++q)
          split_tf32(shared_float(xs + swizzled(i * 16 + g + q % 2 * 8, 2 * kk + q / 2) + 4 * t), ah[q], al[q]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          mma_tf32(small[i][j], al, bh[j][0], bh[j][1]);
          mma_tf32(acc[i][j], ah, bh[j][0], bh[j][1]);
          mma_tf32(small[i][j], ah, bl[j][0], bl[j][1]);
        }
      }
    }
  }
};

// Writes neighbouring sums of one row as the epilogue says: eight, or eight gates and their values.
template <class T> DEVICE void finish_gate(T* row, int column, const float (&v)[16], int activation) {
  float out[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) out[e] = activate(activation, v[e]) * v[8 + e];
  store8(row + column / 2, out);
}
template <class T, int EPILOGUE> DEVICE void finish(T* row, int column, float (&v)[8], int activation) {
  T* to = row + column;
  if (EPILOGUE == ACCUMULATE) {
    float held[8];
    load8(to, held);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] += held[e];
  } else if (EPILOGUE == GELU) {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = gelu_erf_exact(v[e]);
  } else if (EPILOGUE == ACTIVATE) {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = activate(activation, v[e]);
  }
  store8(to, v);
}

template <class T, int EPILOGUE> DEVICE void linear(const LinearArgs& p) {
  extern __shared__ __align__(128) unsigned char memory[];
  u32 base = shared_address(memory);
  int tokens = p.batch->tokens, m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  if (m0 >= tokens) return;
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  constexpr int PER_CHUNK = 16 / sizeof(T);
  int chunks = p.k / PER_CHUNK, steps = (chunks + 7) / 8;
  int chunk = thread % 8, row = thread / 8;
  const T* x = (const T*)p.x;
  const T* w = (const T*)p.w;

  auto fetch = [&](int step) {
    u32 stage = base + step % STAGES * STAGE_BYTES;
    int at = step * 8 + chunk;
    bool inside = step < steps && at < chunks;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int r = row + 32 * i;
      bool valid = inside && m0 + r < tokens;
      copy_async(stage + swizzled(r, chunk), x + (valid ? (u64)(m0 + r) * p.k + at * PER_CHUNK : 0), valid);
      valid = inside && n0 + r < p.rows;
      copy_async(stage + TILE * ROW_BYTES + swizzled(r, chunk),
                 w + (valid ? (u64)(n0 + r) * p.k + at * PER_CHUNK : 0), valid);
    }
    copy_commit();
  };

  float acc[4][4][4] = {}, small[4][4][4] = {};
  int wm = warp / 4 * 64, wn = warp % 4 * 32;
  for (int s = 0; s < STAGES - 1; ++s) fetch(s);
  for (int s = 0; s < steps; ++s) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    fetch(s + STAGES - 1);
    u32 stage = base + s % STAGES * STAGE_BYTES;
    Multiply<T>::step(acc, small, stage + wm * ROW_BYTES, stage + (TILE + wn) * ROW_BYTES, lane);
  }

  // The sums pass through shared memory once more, so that each thread finishes neighbours.
  copy_wait<0>();
  __syncthreads();
  float* sums = (float*)memory;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float* to = sums + (wm + i * 16 + lane / 4) * SUMS_STRIDE + wn + j * 8 + lane % 4 * 2;
      const float(&a)[4] = acc[i][j], (&b)[4] = small[i][j]; // zeros but in f32
      *(float2*)to = make_float2(a[0] + b[0], a[1] + b[1]);
      *(float2*)(to + 8 * SUMS_STRIDE) = make_float2(a[2] + b[2], a[3] + b[3]);
    }
  __syncthreads();
  constexpr int GROUP = EPILOGUE == GATE ? 16 : 8, GROUPS = TILE / GROUP;
  int c = thread % GROUPS * GROUP, column = n0 + c;
  if (column >= p.columns) return;
  float bias[GROUP];
#pragma unroll
  for (int e = 0; e < GROUP; ++e) bias[e] = p.bias && column + e < p.rows ? p.bias[column + e] : 0.f;
#pragma unroll 1
  for (int r = thread / GROUPS; r < TILE && m0 + r < tokens; r += 256 / GROUPS) {
    float v[GROUP];
#pragma unroll
    for (int e = 0; e < GROUP; ++e) v[e] = sums[r * SUMS_STRIDE + c + e] + bias[e];
    T* row = (T*)p.y + (u64)(m0 + r) * p.stride;
    if constexpr (EPILOGUE == GATE) finish_gate(row, column, v, p.activation);
    else finish<T, EPILOGUE>(row, column, v, p.activation);
  }
}

// ---------------------------------------------------------------------------------------------
// Rotary positions: a thread per pair of a token's queries and keys.

struct RotaryArgs {
  void* qkv;
  const float2* cos_sin; // positions x half
  const Batch* batch;
  int heads, half, stride; // heads of queries and keys together
};

template <class T> DEVICE void rotary(const RotaryArgs& p) {
  u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  int pairs = p.heads * p.half;
  u32 token = at / pairs;
  if (token >= p.batch->tokens) return;
  int pair = at % pairs, head = pair / p.half, i = pair % p.half;
  float2 cs = p.cos_sin[(u64)part(p.batch, p.batch->places)[token] * p.half + i];
  T* x = (T*)p.qkv + (u64)token * p.stride + head * 2 * p.half + i;
  float a = load1(x), b = load1(x + p.half);
  store1(x, a * cs.x - b * cs.y);
  store1(x + p.half, b * cs.x + a * cs.y);
}

// ---------------------------------------------------------------------------------------------
// Pooling: a block per sequence and 64 columns; its four warps take every fourth token, two columns a
// lane. And the states themselves, widened.

enum Pooling { CLS = 0, MAX = 1, MEAN = 2, MEAN_SQRT = 3, WEIGHTED = 4, LAST = 5 };

struct PoolArgs {
  const void* hidden;
  float* vectors;
  const Batch* batch;
  int width, stride, mode, skip;
  int first; // row of the batch that vectors begin with
};

template <class T> DEVICE void pool(const PoolArgs& p) {
  u32 row = p.first + blockIdx.x;
  if (row >= p.batch->rows) return;
  const u32* offsets = part(p.batch, p.batch->offsets);
  u32 start = offsets[row];
  int length = offsets[row + 1] - start, first = p.skip < length ? p.skip : 0;
  const T* hidden = (const T*)p.hidden + (u64)start * p.stride;
  __shared__ float2 parts[4][32];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = blockIdx.y * 64 + 2 * lane;
  bool inside = c < p.stride;
  if (p.mode == CLS) length = first + 1;
  if (p.mode == LAST) first = length - 1;
  float start_value = p.mode == MAX ? -__int_as_float(0x7f800000) : 0.f;
  float2 value = make_float2(start_value, start_value);
  if (inside) {
#pragma unroll 4
    for (int t = first + warp; t < length; t += 4) {
      float x, y;
      load2(hidden + (u64)t * p.stride + c, x, y);
      if (p.mode == MAX) { // keeps NaN
        value.x = x > value.x || x != x ? x : value.x;
        value.y = y > value.y || y != y ? y : value.y;
      } else {
        float weight = p.mode == WEIGHTED ? t + 1 : 1;
        value.x += x * weight;
        value.y += y * weight;
      }
    }
  }
  parts[warp][lane] = value;
  __syncthreads();
  if (warp > 0 || !inside) return;
#pragma unroll
  for (int w = 1; w < 4; ++w) {
    float2 other = parts[w][lane];
    if (p.mode == MAX) {
      value.x = other.x > value.x || other.x != other.x ? other.x : value.x;
      value.y = other.y > value.y || other.y != other.y ? other.y : value.y;
    } else {
      value.x += other.x;
      value.y += other.y;
    }
  }
  float count = length - first, divisor = 1.f;
  if (p.mode == MEAN) divisor = count;
  if (p.mode == MEAN_SQRT) divisor = sqrtf(count);
  if (p.mode == WEIGHTED) divisor = 0.5f * count * (first + 1 + length);
  float* to = p.vectors + (u64)blockIdx.x * p.width + c;
  value.x /= divisor;
  value.y /= divisor;
  if (p.width % 2 == 0) { // whole sectors: the vectors may lie in the host's memory
    if (c < p.width) *(float2*)to = value;
    return;
  }
  if (c < p.width) to[0] = value.x;
  if (c + 1 < p.width) to[1] = value.y;
}

struct WidenArgs {
  const void* in;
  float* out;
  const Batch* batch;
  int width, stride;
  int first; // token of the batch that out begins with
};

template <class T> DEVICE void widen(const WidenArgs& p) {
  u32 token = p.first + blockIdx.x;
  if (token >= p.batch->tokens) return;
  for (int c = threadIdx.x; c < p.width; c += blockDim.x)
    p.out[(u64)blockIdx.x * p.width + c] = load1((const T*)p.in + (u64)token * p.stride + c);
}

// The rows of state and context of the tokens that are kept become the first ones, in place: tokens rise,
// and a thread has the same 16 bytes of every row, so that what it overwrites it has read.
struct KeepArgs {
  void *hidden, *context;
  const Batch* kept; // its ids are tokens of the batch before
  int hidden_stride, context_stride;
};

template <class T> DEVICE void keep(const KeepArgs& p) {
  constexpr int PIECE = 16 / sizeof(T), GROUP = 16;
  int piece = blockIdx.x * blockDim.x + threadIdx.x;
  int hidden = p.hidden_stride / PIECE, context = p.context_stride / PIECE;
  if (piece >= hidden + context) return;
  uint4* column = piece < hidden ? (uint4*)p.hidden + piece : (uint4*)p.context + (piece - hidden);
  u64 stride = piece < hidden ? hidden : context;
  const u32* from = part(p.kept, p.kept->ids);
  int rows = p.kept->tokens;
  for (int first = 0; first < rows; first += GROUP) {
    uint4 held[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i)
      if (first + i < rows) held[i] = column[from[first + i] * stride];
#pragma unroll
    for (int i = 0; i < GROUP; ++i)
      if (first + i < rows) column[(first + i) * stride] = held[i];
  }
}

// ---------------------------------------------------------------------------------------------
// Entry points.

#define ENTRY(kernel, name, threads, blocks, Args, body)                                     \
  extern "C" __global__ void __launch_bounds__(threads, blocks) kernel##_##name(Args p) { \
    release_next();                                                                     \
    wait_for_previous();                                                                \
    body(p);                                                                            \
  }
#define LINEAR(epilogue, EPILOGUE, T, name) \
  ENTRY(linear_##epilogue, name, 256, (sizeof(T) == 2 ? 2 : 1), LinearArgs, (linear<T, EPILOGUE>))
#define FORMAT(T, name)                                                     \
  ENTRY(embed, name, 128, 1, EmbedArgs, embed<T>)                           \
  ENTRY(norm, name, 128, 1, NormArgs, norm<T>)                              \
  LINEAR(store, STORE, T, name)                                             \
  LINEAR(accumulate, ACCUMULATE, T, name)                                   \
  LINEAR(gelu, GELU, T, name)                                               \
  LINEAR(activate, ACTIVATE, T, name)                                       \
  LINEAR(gate, GATE, T, name)                                               \
  ENTRY(rotary, name, 256, 1, RotaryArgs, rotary<T>)                        \
  ENTRY(attention_plain, name, 128, 1, AttentionArgs, attention_plain<T>)   \
  ENTRY(pool, name, 128, 1, PoolArgs, pool<T>)                              \
  ENTRY(widen, name, 128, 1, WidenArgs, widen<T>)                           \
  ENTRY(keep, name, 32, 1, KeepArgs, keep<T>)
FORMAT(Half, f16)
FORMAT(Bf16, bf16)
FORMAT(float, f32)

// The backend starts as many blocks as share a multiprocessor by these bounds, or a few more.
#if __CUDA_ARCH__ == 900
constexpr int BLOCKS_32 = 5, BLOCKS_64 = 4;
#else
constexpr int BLOCKS_32 = 4, BLOCKS_64 = 3; // more spill there
#endif
#define TILED(T, name, B32, B64)                                               \
  ENTRY(attention_32, name, 128, B32, AttentionArgs, (attention_tiled<T, 32>))  \
  ENTRY(attention_64, name, 128, B64, AttentionArgs, (attention_tiled<T, 64>))  \
  ENTRY(attention_128, name, 128, 2, AttentionArgs, (attention_tiled<T, 128>))
TILED(Half, f16, BLOCKS_32, BLOCKS_64)
TILED(Bf16, bf16, BLOCKS_32, BLOCKS_64)
TILED(float, f32, 4, 3)
