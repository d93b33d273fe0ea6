// Functions whose accuracy must not depend on the driver: WGSL lets `exp` and `tanh` be off by several units, Metal's
// fast mode by more, and there is no `erf` at all.

// exp(v), error below 2 units in the last place; arguments beyond +-87 are clamped.
fn exp4(v: vec4<f32>) -> vec4<f32> {
    let x = clamp(v, vec4<f32>(-87.0), vec4<f32>(87.0));
    let n = round(x * 1.44269504);
    let r = (x - n * 0.693359375) + n * 2.12194440e-4;
    var sum = r * 1.9875691500e-4 + 1.3981999507e-3;
    sum = sum * r + 8.3334519073e-3;
    sum = sum * r + 4.1665795894e-2;
    sum = sum * r + 1.6666665459e-1;
    sum = sum * r + 5.0000001201e-1;
    sum = sum * r * r + r + 1.0;
    return sum * bitcast<vec4<f32>>((vec4<i32>(n) + 127) << vec4<u32>(23u));
}

// The bits of each magnitude. Unsigned comparison of them orders magnitudes and puts infinity and NaN last, which holds
// where a compiler assumes that neither exists.
fn magnitude4(v: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
}

const INFINITY_BITS = 0x7f800000u;
const NAN_BITS = 0x7fc00000u;
