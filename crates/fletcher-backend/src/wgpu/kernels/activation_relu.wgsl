// By bits, since `max` may turn NaN into 0.
fn activation(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let negative = (bits >= vec4<u32>(0x80000000u)) & (bits <= vec4<u32>(0xff800000u));
    return select(x, vec4<f32>(0.0), negative);
}
