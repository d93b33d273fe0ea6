// y = epilogue(x * W^T + bias) in f32 arithmetic, for every device: 64 rows by 64 features of a workgroup, 4 by 4 of a thread.
// W is padded with zeros to whole tiles, the rows of x to whole tiles of memory.
struct Immediates { tokens: u32, depth: u32, x_stride: u32, columns: u32, y_stride: u32 }
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<vec4<E>>;
@group(0) @binding(1) var<storage, read_write> y: array<{{Y}}>;
@group(1) @binding(0) var<storage, read> weight: array<vec4<E>>;
@group(1) @binding(1) var<storage, read> bias: array<vec4<f32>>;

const PITCH = 68u;
var<workgroup> rows: array<f32, 1088>;
var<workgroup> features: array<f32, 1088>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let across = (local % 16u) * 4u;
    let down = (local / 16u) * 4u;
    let line = local / 4u;
    let quad = local % 4u;
    let x_at = ((group.y * 64u + line) * p.x_stride) / 4u + quad;
    let w_at = ((group.x * 64u + line) * p.depth) / 4u + quad;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var k = 0u; k < p.depth; k += 16u) {
        let xs = vec4<f32>(x[x_at + k / 4u]);
        let ws = vec4<f32>(weight[w_at + k / 4u]);
        let to = quad * 4u * PITCH + line;
        rows[to] = xs.x;
        rows[to + PITCH] = xs.y;
        rows[to + 2u * PITCH] = xs.z;
        rows[to + 3u * PITCH] = xs.w;
        features[to] = ws.x;
        features[to + PITCH] = ws.y;
        features[to + 2u * PITCH] = ws.z;
        features[to + 3u * PITCH] = ws.w;
        workgroupBarrier();
        for (var i = 0u; i < 16u; i++) {
            let f = i * PITCH + across;
            let r = i * PITCH + down;
            let w = vec4<f32>(features[f], features[f + 1u], features[f + 2u], features[f + 3u]);
            s0 += rows[r] * w;
            s1 += rows[r + 1u] * w;
            s2 += rows[r + 2u] * w;
            s3 += rows[r + 3u] * w;
        }
        workgroupBarrier();
    }
    let row = group.y * 64u + down;
    let column = group.x * 64u + across;
    finish(s0, row, column);
    finish(s1, row + 1u, column);
    finish(s2, row + 2u, column);
    finish(s3, row + 3u, column);
}
