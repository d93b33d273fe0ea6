// x/2 * (1 + erf(x / sqrt 2)), the exact GELU. erfc(z) for z >= 0 is Abramowitz and Stegun's 7.1.26, off by at most 1.5e-7.
fn activation(x: vec4<f32>) -> vec4<f32> {
    let z = abs(x) * 0.7071067811865476;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    var sum = t * 1.061405429 - 1.453152027;
    sum = sum * t + 1.421413741;
    sum = sum * t - 0.284496736;
    sum = sum * t + 0.254829592;
    let tail = 0.5 * x * (sum * t) * exp4(-z * z);
    return select(x - tail, tail, x < vec4<f32>(0.0));
}
