// What all kernels share: number formats, tensor-core instructions and copies, as inline PTX.
//
// No header of the CUDA toolkit is used, so that any compiler of the toolkit (nvcc or NVRTC) makes
// the cubins from these files alone.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// Storage formats. Sums, norms and softmax are f32 in each.
struct Half { u16 bits; };
struct Bf16 { u16 bits; };

template <class T> struct Format;

template <> struct Format<Half> {
  static DEVICE u32 pack(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
  }
  // Zeros stay zeros while all numbers are finite.
  static DEVICE u32 plus_zero_times(u32 plus, u32 v) {
    asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(plus) : "r"(v), "r"(0));
    return plus;
  }
  static DEVICE float low(u32 v) {
    float f;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(f) : "r"(v));
    return f;
  }
  static DEVICE float high(u32 v) {
    float f;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(f) : "r"(v));
    return f;
  }
};

template <> struct Format<Bf16> {
  static DEVICE u32 pack(float lo, float hi) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
  }
  // Zeros stay zeros while all numbers are finite.
  static DEVICE u32 plus_zero_times(u32 plus, u32 v) {
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(plus) : "r"(v), "r"(0));
    return plus;
  }
  static DEVICE float low(u32 v) { return __uint_as_float(v << 16); }
  static DEVICE float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }
};

DEVICE float load1(const float* p) { return *p; }
DEVICE float load1(const Half* p) { return Format<Half>::low(p->bits); }
DEVICE float load1(const Bf16* p) { return Format<Bf16>::low(p->bits); }
DEVICE void store1(float* p, float v) { *p = v; }
DEVICE void store1(Half* p, float v) { p->bits = (u16)Format<Half>::pack(v, 0.f); }
DEVICE void store1(Bf16* p, float v) { p->bits = (u16)Format<Bf16>::pack(v, 0.f); }

// Two neighbours at an even column.
template <class T> DEVICE void load2(const T* p, float& a, float& b) {
  u32 v = *(const u32*)p;
  a = Format<T>::low(v);
  b = Format<T>::high(v);
}
DEVICE void load2(const float* p, float& a, float& b) {
  float2 v = *(const float2*)p;
  a = v.x;
  b = v.y;
}
template <class T> DEVICE void store2(T* p, float a, float b) { *(u32*)p = Format<T>::pack(a, b); }
DEVICE void store2(float* p, float a, float b) { *(float2*)p = make_float2(a, b); }

// Eight neighbours at a column that is a multiple of eight.
template <class T> DEVICE void load8(const T* p, float (&v)[8]) {
  uint4 w = *(const uint4*)p;
  v[0] = Format<T>::low(w.x), v[1] = Format<T>::high(w.x), v[2] = Format<T>::low(w.y), v[3] = Format<T>::high(w.y);
  v[4] = Format<T>::low(w.z), v[5] = Format<T>::high(w.z), v[6] = Format<T>::low(w.w), v[7] = Format<T>::high(w.w);
}
DEVICE void load8(const float* p, float (&v)[8]) {
  float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <class T> DEVICE void store8(T* p, const float (&v)[8]) {
  *(uint4*)p = make_uint4(Format<T>::pack(v[0], v[1]), Format<T>::pack(v[2], v[3]), Format<T>::pack(v[4], v[5]),
                          Format<T>::pack(v[6], v[7]));
}
DEVICE void store8(float* p, const float (&v)[8]) {
  ((float4*)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
  ((float4*)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l%8 of matrix l/8.
DEVICE void ldmatrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
DEVICE void ldmatrix_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// c += a * b, 16x16 times 16x8.
template <class T> DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> DEVICE void mma<Half>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> DEVICE void mma<Bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a * b, 16x8 times 8x8, operands rounded to TF32.
DEVICE void mma_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// x = high + low, each a TF32 number: three products of such halves give an f32 product's accuracy.
// The high one is rounded half away from zero (cvt.rna.tf32 is the same in four instructions instead
// of two); of the low one the tensor cores take what they read, all but at most its last bit.
// NaN and infinity leave a NaN in the low one.
DEVICE void split_tf32(float x, u32& high, u32& low) {
  high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
  low = __float_as_uint(x - __uint_as_float(high));
}

// 16 bytes from global to shared memory; zeros unless `valid`.
DEVICE void copy_async(u32 to, const void* from, bool valid) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Barriers in shared memory that count arrivals and, on newer cards, the bytes of bulk copies.
DEVICE void barrier_init(u32 at, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
DEVICE void barrier_arrive(u32 at) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }" ::"r"(at) : "memory");
}
DEVICE void barrier_wait(u32 at, u32 parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .pred p;\n"
      "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE;\n bra AGAIN;\n DONE: }" ::"r"(at), "r"(parity) : "memory");
#else
  asm volatile(
      "{ .reg .pred p;\n"
      "AGAIN: mbarrier.test_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE;\n bra AGAIN;\n DONE: }" ::"r"(at), "r"(parity) : "memory");
#endif
}
DEVICE void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A kernel may be started before the one in front of it in its stream is through: it prepares
// what it needs, and waits here before it reads or writes what others do. `release_next` lets the
// next kernel begin in turn, as soon as multiprocessors have room.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// What the tensor cores or the copy engine read next was written by ordinary stores.
DEVICE void publish() {
#if __CUDA_ARCH__ == 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

DEVICE float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
DEVICE float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// Four lanes hold a row's pairs of columns, pair by pair, of four blocks of eight columns; afterwards
// each holds one block, all eight neighbours.
DEVICE void quad_transpose(u32 (&w)[4]) {
  bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    u32 other = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
    w[i] = odd ? other : w[i];
    w[i + 1] = odd ? w[i + 1] : other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    u32 other = __shfl_xor_sync(0xffffffffu, upper ? w[i] : w[i + 2], 2);
    w[i] = upper ? other : w[i];
    w[i + 2] = upper ? w[i + 2] : other;
  }
}

// A batch as the host lays it out: this header, then the arrays it points into (word indices).
struct Batch {
  u32 tokens, rows, items, tiles;
  u32 ids, positions, places, offsets, work, ends, starts, pad;
};
DEVICE const u32* part(const Batch* b, u32 at) { return (const u32*)b + at; }

// The numbers of spec::Activation.
enum Activation { GELU_ERF = 0, GELU_TANH = 1, SILU = 2, RELU = 3, TANH = 4, IDENTITY = 5 };

// The exact GELU in f32, x * Phi(x), as max(x, 0) - |x| * Phi(-|x|), with the logarithm of that Phi as a
// polynomial: at most 5e-8 from the true value below zero and half of f32's last place above, where
// x / 2 * (1 + erff(x / sqrt(2))) is twice as far, in twice the instructions.
DEVICE float gelu_erf_exact(float x) {
  float c = fabsf(x), q = fmaf(-1.69040288e-06f, c, 2.50833255e-05f);
  q = fmaf(fmaf(fmaf(q, c, -0.000114462797f), c, -0.000323341781f), c, 0.00733338343f);
  q = fmaf(fmaf(fmaf(fmaf(q, c, -0.0527141988f), c, -0.459115446f), c, -1.15112329f), c, -0.999998868f);
  return fmaf(-c, exp2_fast(q), fmaxf(x, 0.f));
}

DEVICE float activate(int activation, float x) {
  switch (activation) {
    case GELU_ERF: return gelu_erf_exact(x);
    case GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case SILU: return x / (1.f + expf(-x));
    case RELU: return x < 0.f ? 0.f : x;  // keeps NaN
    case TANH: return tanhf(x);
    default: return x;
  }
}

// Activations that are x / (1 + 2^(x * (a + b * x^2 + c * x^4))). SiLU and GELU's tanh form are so by
// definition.
struct Logistic {
  float a, b, c;
};
DEVICE float logistic(float x, Logistic by) {
  float u = fminf(x * x, 64.f); // behind which GELU's polynomial would turn, and Phi is 0 or 1 in f32
  float odds;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(odds) : "f"(1.f + exp2_fast(x * fmaf(fmaf(by.c, u, by.b), u, by.a))));
  return x * odds;
}

// The exact GELU, x * Phi(x), as max(x, 0) - |x| * Phi(-|x|), with the logarithm of that Phi as a
// polynomial: at most 5.5e-5 from the true value, a ninth of what rounding to f16 costs a number near 1.
DEVICE float gelu(float x) {
  float c = fabsf(x);
  float log2_phi = fmaf(fmaf(fmaf(-0.02488563f, c, -0.49882001f), c, -1.129246f), c, -1.0035317f);
  return fmaf(-c, exp2_fast(log2_phi), fmaxf(x, 0.f));
}
