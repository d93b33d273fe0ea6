// y[token] = (x - mean) / sqrt(variance + eps) * scale + bias. A subgroup takes a row; how many lanes it has is the
// device's affair. The columns behind the last are zero, and stay so because scale and bias are zero there.
struct Immediates { tokens: u32, columns: u32, quads: u32, eps: f32 }
var<immediate> p: Immediates;
{{SOURCE}}
@group(0) @binding(1) var<storage, read_write> y: array<vec4<E>>;
@group(1) @binding(0) var<storage, read> scale: array<vec4<f32>>;
@group(1) @binding(1) var<storage, read> bias: array<vec4<f32>>;

const ROWS = {{ROWS}}u;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let end = min((group.x + 1u) * ROWS, p.tokens);
    for (var row = group.x * ROWS + subgroup; row < end; row += subgroups) {
        let base = row * p.quads;
        var sum = vec4<f32>(0.0);
        var squares = vec4<f32>(0.0);
{{ROW}}
    }
}

// What a four of the row is above the mean; nothing behind the last column.
fn centered(v: vec4<f32>, mean: f32, quad: u32) -> vec4<f32> {
    let column = vec4<u32>(quad * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(0.0), v - mean, column < vec4<u32>(p.columns));
}

fn mean_of(sum: vec4<f32>) -> f32 {
    return subgroupAdd(sum.x + sum.y + sum.z + sum.w) / f32(p.columns);
}
