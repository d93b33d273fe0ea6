// The operations of the encoder for every card since compute capability 8.0 and every spec.
//
// Rows of all matrices begin at multiples of 16 bytes. Columns between a matrix's width and its
// stride are zeros, in weights and activations alike, so that no loop has to know the width.
#include "common.cuh"

// ---------------------------------------------------------------------------------------------
// Embedding: a warp per token.

struct EmbedArgs {
  const void* word;
  const void* position;   // null for models without
  const void* token_type; // null for models without
  void* out;
  const Batch* batch;
  int width, stride;
};

template <class T> DEVICE void embed(const EmbedArgs& p) {
  u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (token >= p.batch->tokens) return;
  u64 id = part(p.batch, p.batch->ids)[token], position = part(p.batch, p.batch->positions)[token];
  const T* word = (const T*)p.word + id * p.stride;
  const T* place = (const T*)p.position + position * p.stride;
  const T* type = (const T*)p.token_type;
  T* out = (T*)p.out + (u64)token * p.stride;
  for (int c = 2 * (threadIdx.x % 32); c < p.stride; c += 64) {
    float a, b, x, y;
    load2(word + c, a, b);
    if (p.position) { load2(place + c, x, y); a += x; b += y; }
    if (p.token_type) { load2(type + c, x, y); a += x; b += y; }
    store2(out + c, a, b);
  }
}

// ---------------------------------------------------------------------------------------------
// LayerNorm: a warp per token. A row of up to 1024 columns is read once and held in registers; a wider
// one is read three times, twice from the L1 cache.

struct NormArgs {
  const void* in;
  void* out;
  const float* scale; // zeros behind the width
  const float* bias;  // null for none
  const Batch* batch;
  int width, stride;
  float eps;
};

template <class T> DEVICE void norm(const NormArgs& p) {
  u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (token >= p.batch->tokens) return;
  const T* in = (const T*)p.in + (u64)token * p.stride;
  T* out = (T*)p.out + (u64)token * p.stride;
  if (p.stride <= 1024) {
    float v[4][8], sum = 0.f, squares = 0.f;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int c = (lane + 32 * i) * 8;
      if (c >= p.stride) break;
      load8(in + c, v[i]);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum += v[i][e]; // what lies behind the width is zero
    }
    float mean = warp_sum(sum) / p.width;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
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
    for (int i = 0; i < 4; ++i) {
      int c = (lane + 32 * i) * 8;
      if (c >= p.stride) break;
      float scale[8], bias[8] = {};
      load8(p.scale + c, scale);
      if (p.bias) load8(p.bias + c, bias);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[i][e] = v[i][e] * factor * scale[e] + bias[e];
      store8(out + c, v[i]);
    }
    return;
  }
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
  static DEVICE void step(float (&acc)[4][4][4], u32 xs, u32 ws, int lane) {
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

template <> struct Multiply<float> {
  static DEVICE void step(float (&acc)[4][4][4], u32 xs, u32 ws, int lane) {
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
          mma_tf32(acc[i][j], al, bh[j][0], bh[j][1]);
          mma_tf32(acc[i][j], ah, bl[j][0], bl[j][1]);
          mma_tf32(acc[i][j], ah, bh[j][0], bh[j][1]);
        }
      }
    }
  }
};

// Writes eight neighbouring sums of one row as the epilogue says.
template <class T, int EPILOGUE> DEVICE void finish(T* row, int column, float (&v)[8], int activation) {
  if (EPILOGUE == GATE) { // gate and value are neighbours, by the order of the uploaded rows
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = activate(activation, v[2 * e]) * v[2 * e + 1];
    store2(row + column / 2, v[0], v[1]);
    store2(row + column / 2 + 2, v[2], v[3]);
    return;
  }
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

  float acc[4][4][4] = {};
  int wm = warp / 4 * 64, wn = warp % 4 * 32;
  for (int s = 0; s < STAGES - 1; ++s) fetch(s);
  for (int s = 0; s < steps; ++s) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    fetch(s + STAGES - 1);
    u32 stage = base + s % STAGES * STAGE_BYTES;
    Multiply<T>::step(acc, stage + wm * ROW_BYTES, stage + (TILE + wn) * ROW_BYTES, lane);
  }

  // The sums pass through shared memory once more, so that each thread finishes eight neighbours.
  copy_wait<0>();
  __syncthreads();
  float* sums = (float*)memory;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float* to = sums + (wm + i * 16 + lane / 4) * SUMS_STRIDE + wn + j * 8 + lane % 4 * 2;
      *(float2*)to = make_float2(acc[i][j][0], acc[i][j][1]);
      *(float2*)(to + 8 * SUMS_STRIDE) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
  __syncthreads();
  int c = thread % 16 * 8, column = n0 + c;
  if (column >= p.columns) return;
  float bias[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) bias[e] = p.bias && column + e < p.rows ? p.bias[column + e] : 0.f;
#pragma unroll 1
  for (int r = thread / 16; r < TILE && m0 + r < tokens; r += 16) {
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = sums[r * SUMS_STRIDE + c + e] + bias[e];
    finish<T, EPILOGUE>((T*)p.y + (u64)(m0 + r) * p.stride, column, v, p.activation);
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
// Attention.

struct AttentionArgs {
  const void* qkv;
  void* context;
  const float* relative; // heads x (2 * positions - 1), or null
  const Batch* batch;
  int heads, head_dim, stride, context_stride;
  int window; // negative for none
  int positions;
  float scale;
};

// Tensor cores, 16-bit formats: a block takes 64 queries of one head past its keys, 64 at a time,
// with the softmax kept up to date (Dao 2023). Memory does not grow with the sequence.
template <class T, int DIM> DEVICE void attention_tiled(const AttentionArgs& p) {
  constexpr int ROW = DIM * 2 + 16; // the extra 16 bytes keep fragment loads free of bank conflicts
  constexpr int PARTS = DIM / 8;
  extern __shared__ __align__(128) unsigned char memory[];
  if (blockIdx.x >= p.batch->items) return;
  const u32* item = part(p.batch, p.batch->work) + 2 * blockIdx.x;
  const u32* offsets = part(p.batch, p.batch->offsets);
  u32 start = offsets[item[0]];
  int length = offsets[item[0] + 1] - start, q0 = item[1], head = blockIdx.y;
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  u32 qs = shared_address(memory), ks = qs + 64 * ROW, vs = ks + 64 * ROW;
  int width = p.heads * p.head_dim;
  bool whole = p.head_dim % 8 == 0;

  auto load = [&](u32 to, int which, int first) {
    const T* from = (const T*)p.qkv + (u64)start * p.stride + which * width + head * p.head_dim;
    for (int at = thread; at < 64 * PARTS; at += 128) {
      int r = at / PARTS, c = at % PARTS * 8;
      bool inside = first + r < length;
      u32 address = to + r * ROW + c * 2;
      const T* source = from + (u64)(inside ? first + r : 0) * p.stride;
      if (whole) {
        bool valid = inside && c < p.head_dim;
        copy_async(address, source + (valid ? c : 0), valid);
      } else {
        u32 v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int d = c + 2 * i;
          float a = inside && d < p.head_dim ? load1(source + d) : 0.f;
          float b = inside && d + 1 < p.head_dim ? load1(source + d + 1) : 0.f;
          v[i] = Format<T>::pack(a, b);
        }
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                     : "memory");
      }
    }
  };

  int low = 0, high = length;
  if (p.window >= 0) {
    low = max(0, q0 - p.window);
    high = min(length, min(q0 + 64, length) + p.window);
  }
  load(qs, 0, q0);
  float out[DIM / 8][4] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f};
  int query[2] = {q0 + warp * 16 + g, q0 + warp * 16 + g + 8};
  const float* relative = p.relative ? p.relative + (u64)head * (2 * p.positions - 1) + p.positions - 1 : nullptr;
  constexpr float LOG2E = 1.4426950408889634f;

  for (int k0 = low / 64 * 64; k0 < high; k0 += 64) {
    load(ks, 1, k0);
    load(vs, 2, k0);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    float s[8][4] = {};
#pragma unroll
    for (int kk = 0; kk < DIM / 16; ++kk) {
      u32 a[4];
      ldmatrix(a, qs + (warp * 16 + lane % 16) * ROW + (2 * kk + lane / 16) * 16);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        u32 b[4];
        ldmatrix(b, ks + (j * 16 + lane % 8 + lane / 16 * 8) * ROW + (2 * kk + lane / 8 % 2) * 16);
        mma<T>(s[2 * j], a, b[0], b[1]);
        mma<T>(s[2 * j + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = top[h];
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          int key = k0 + j * 8 + 2 * t + e;
          float& v = s[j][2 * h + e];
          v *= p.scale;
          bool seen = key < length && (p.window < 0 || abs(key - query[h]) <= p.window);
          if (relative && seen && query[h] < length) v += relative[key - query[h]];
          v = seen ? v * LOG2E : -1e30f;
          most = fmaxf(most, v);
        }
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      float shrink = exp2_fast(top[h] - most);
      top[h] = most;
      sum[h] *= shrink;
#pragma unroll
      for (int j = 0; j < DIM / 8; ++j) {
        out[j][2 * h] *= shrink;
        out[j][2 * h + 1] *= shrink;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& v = s[j][2 * h + e];
          // A row that has seen no key yet has `most` at the mask's own value: nothing counts.
          v = v <= -1e30f ? 0.f : exp2_fast(v - most);
          sum[h] += v;
        }
    }
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      u32 a[4] = {Format<T>::pack(s[2 * kk][0], s[2 * kk][1]), Format<T>::pack(s[2 * kk][2], s[2 * kk][3]),
                  Format<T>::pack(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                  Format<T>::pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
      for (int j = 0; j < DIM / 16; ++j) {
        u32 b[4];
        ldmatrix_transposed(b, vs + (kk * 16 + lane % 16) * ROW + (2 * j + lane / 16) * 16);
        mma<T>(out[2 * j], a, b[0], b[1]);
        mma<T>(out[2 * j + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    if (query[h] >= length) continue;
    float factor = 1.f / sum[h];
    T* to = (T*)p.context + (u64)(start + query[h]) * p.context_stride + head * p.head_dim;
#pragma unroll
    for (int j = 0; j < DIM / 8; ++j) {
      int d = j * 8 + 2 * t;
      if (whole) {
        if (d < p.head_dim) store2(to + d, out[j][2 * h] * factor, out[j][2 * h + 1] * factor);
      } else {
        if (d < p.head_dim) store1(to + d, out[j][2 * h] * factor);
        if (d + 1 < p.head_dim) store1(to + d + 1, out[j][2 * h + 1] * factor);
      }
    }
  }
}

// Any format and any head up to 256 wide: a warp per query, keys by lanes, then columns by lanes.
template <class T> DEVICE void attention_plain(const AttentionArgs& p) {
  __shared__ float queries[4][256];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
  if (blockIdx.x / 16 >= p.batch->items) return;
  const u32* item = part(p.batch, p.batch->work) + 2 * (blockIdx.x / 16);
  const u32* offsets = part(p.batch, p.batch->offsets);
  u32 start = offsets[item[0]];
  int length = offsets[item[0] + 1] - start, query = item[1] + blockIdx.x % 16 * 4 + warp;
  if (query >= length) return;
  int width = p.heads * p.head_dim;
  const T* base = (const T*)p.qkv + (u64)start * p.stride + head * p.head_dim;
  for (int d = lane; d < p.head_dim; d += 32) queries[warp][d] = load1(base + (u64)query * p.stride + d);
  __syncwarp();
  int low = p.window < 0 ? 0 : max(0, query - p.window);
  int high = p.window < 0 ? length : min(length, query + p.window + 1);
  float out[8] = {}, top = -1e30f, sum = 0.f;
  for (int k0 = low; k0 < high; k0 += 32) {
    int key = k0 + lane;
    float score = -1e30f;
    if (key < high) {
      const T* k = base + (u64)key * p.stride + width;
      float dot = 0.f;
      for (int d = 0; d < p.head_dim; ++d) dot += queries[warp][d] * load1(k + d);
      score = dot * p.scale;
      if (p.relative) score += p.relative[(u64)head * (2 * p.positions - 1) + key - query + p.positions - 1];
    }
    float most = fmaxf(top, warp_max(score));
    float shrink = expf(top - most), weight = key < high ? expf(score - most) : 0.f;
    top = most;
    sum = sum * shrink + warp_sum(weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] *= shrink;
    int count = min(32, high - k0);
    for (int j = 0; j < count; ++j) {
      float share = __shfl_sync(0xffffffffu, weight, j);
      const T* v = base + (u64)(k0 + j) * p.stride + 2 * width;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (lane + 32 * i < p.head_dim) out[i] += share * load1(v + lane + 32 * i);
    }
  }
  T* to = (T*)p.context + (u64)(start + query) * p.context_stride + head * p.head_dim;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (lane + 32 * i < p.head_dim) store1(to + lane + 32 * i, out[i] / sum);
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
  float* to = p.vectors + (u64)blockIdx.x * p.width;
  if (c < p.width) to[c] = value.x / divisor;
  if (c + 1 < p.width) to[c + 1] = value.y / divisor;
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

// ---------------------------------------------------------------------------------------------
// Entry points.

#define ENTRIES(T, name)                                                                                       \
  extern "C" __global__ void __launch_bounds__(128) embed_##name(EmbedArgs p) { embed<T>(p); }                 \
  extern "C" __global__ void __launch_bounds__(128) norm_##name(NormArgs p) { norm<T>(p); }                    \
  extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1) linear_store_##name(LinearArgs p) { linear<T, STORE>(p); } \
  extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1) linear_accumulate_##name(LinearArgs p) {                \
    linear<T, ACCUMULATE>(p);                                                                                  \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1) linear_gelu_##name(LinearArgs p) { linear<T, GELU>(p); } \
  extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1) linear_activate_##name(LinearArgs p) {                  \
    linear<T, ACTIVATE>(p);                                                                                    \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1) linear_gate_##name(LinearArgs p) { linear<T, GATE>(p); } \
  extern "C" __global__ void __launch_bounds__(256) rotary_##name(RotaryArgs p) { rotary<T>(p); }              \
  extern "C" __global__ void __launch_bounds__(128) attention_plain_##name(AttentionArgs p) {                  \
    attention_plain<T>(p);                                                                                     \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(128) pool_##name(PoolArgs p) { pool<T>(p); }                    \
  extern "C" __global__ void __launch_bounds__(128) widen_##name(WidenArgs p) { widen<T>(p); }

ENTRIES(Half, f16)
ENTRIES(Bf16, bf16)
ENTRIES(float, f32)

#define TILED(T, name, DIM)                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, DIM == 32 ? 5 : DIM == 64 ? 4 : 3) attention_##DIM##_##name(AttentionArgs p) {                \
    attention_tiled<T, DIM>(p);                                                                                \
  }
TILED(Half, f16, 32)
TILED(Half, f16, 64)
TILED(Half, f16, 128)
TILED(Bf16, bf16, 32)
TILED(Bf16, bf16, 64)
TILED(Bf16, bf16, 128)
