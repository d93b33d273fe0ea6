// Rotates the halves of every query and key head against each other, by the token's place in its sequence. One thread
// takes one pair.
struct Immediates { tokens: u32, pairs: u32, half: u32, stride: u32 }
var<immediate> p: Immediates;
@group(0) @binding(1) var<storage, read_write> y: array<E>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(1) @binding(0) var<storage, read> cos_sin: array<vec2<f32>>;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * {{THREADS}}u + local;
    let token = index / p.pairs;
    let pair = index % p.pairs;
    if (token >= p.tokens) {
        return;
    }
    let head = pair / p.half;
    let i = pair % p.half;
    let place = batch[2u * p.tokens + token];
    let rotation = cos_sin[place * p.half + i];
    let at = token * p.stride + head * 2u * p.half + i;
    let a = f32(y[at]);
    let b = f32(y[at + p.half]);
    y[at] = E(a * rotation.x - b * rotation.y);
    y[at + p.half] = E(b * rotation.x + a * rotation.y);
}
