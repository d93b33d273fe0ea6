// y[token] = word row + position row + token-type row. One thread takes four columns of a token.
struct Immediates { tokens: u32, quads: u32, positions: u32, types: u32 }
var<immediate> p: Immediates;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<E>>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(1) @binding(0) var<storage, read> word: array<vec4<E>>;
@group(1) @binding(1) var<storage, read> position: array<vec4<E>>;
@group(1) @binding(2) var<storage, read> token_type: array<vec4<E>>;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * {{THREADS}}u + local;
    let token = index / p.quads;
    let quad = index % p.quads;
    if (token >= p.tokens) {
        return;
    }
    var sum = vec4<f32>(word[batch[token] * p.quads + quad]);
    if (p.positions != 0u) {
        sum += vec4<f32>(position[batch[p.tokens + token] * p.quads + quad]);
    }
    if (p.types != 0u) {
        sum += vec4<f32>(token_type[quad]);
    }
    y[index] = vec4<E>(sum);
}
