fn activation(x: vec4<f32>) -> vec4<f32> {
    let y = 1.0 - 2.0 / (exp4(2.0 * x) + 1.0);
    return select(y, x, magnitude4(x) > vec4<u32>(INFINITY_BITS));
}
