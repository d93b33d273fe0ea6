// x/2 * (1 + tanh(u)) = x / (1 + exp(-2u)), with GELU's tanh approximation's u.
fn activation(x: vec4<f32>) -> vec4<f32> {
    let u = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    return x / (1.0 + exp4(-2.0 * u));
}
