// Softmax attention of a sequence over itself in f32 arithmetic, for every head size: 32 queries of one head by 64 columns of
// its values for a workgroup, 32 keys at a time with a running maximum. A thread owns a quarter of a query's row.
struct Immediates {
    tiles: u32, x_stride: u32, y_stride: u32, context: u32, dim: u32, scale: f32, window: u32, positions: u32,
}
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<E>;
@group(0) @binding(1) var<storage, read_write> y: array<E>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(1) @binding(0) var<storage, read> relative: array<f32>;

const PITCH = 33u;
var<workgroup> queries: array<f32, 1056>;
var<workgroup> keys: array<f32, 1056>;
var<workgroup> weights: array<f32, 1056>;
var<workgroup> values: array<vec4<f32>, 512>;
var<workgroup> poisons: array<u32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let start = batch[p.tiles + 3u * group.x];
    let length = batch[p.tiles + 3u * group.x + 1u];
    let first = batch[p.tiles + 3u * group.x + 2u];
    let head = group.y * p.dim;
    let chunk = group.z * 64u;
    let row = local / 4u;
    let part = local % 4u;
    let query = first + row;
    let low = select(0u, first - min(p.window, first), p.window != 0xffffffffu);
    let high = select(length, min(length, first + 32u + min(p.window, length)), p.window != 0xffffffffu);

    var most = -1e30;
    var total = 0.0;
    var poison = 0u;
    var o0 = vec4<f32>(0.0);
    var o1 = vec4<f32>(0.0);
    var o2 = vec4<f32>(0.0);
    var o3 = vec4<f32>(0.0);
    for (var block = low; block < high; block += 32u) {
        var s0 = vec4<f32>(0.0);
        var s1 = vec4<f32>(0.0);
        for (var column = 0u; column < p.dim; column += 32u) {
            for (var i = local; i < 1024u; i += 128u) {
                let r = i / 32u;
                let c = column + i % 32u;
                let to = r * PITCH + i % 32u;
                queries[to] = 0.0;
                keys[to] = 0.0;
                if (c < p.dim && first + r < length) {
                    queries[to] = f32(x[(start + first + r) * p.x_stride + head + c]);
                }
                if (c < p.dim && block + r < high) {
                    keys[to] = f32(x[(start + block + r) * p.x_stride + p.context + head + c]);
                }
            }
            workgroupBarrier();
            for (var c = 0u; c < 32u; c++) {
                let q = queries[row * PITCH + c];
                let k = part * 8u * PITCH + c;
                s0 += q * vec4<f32>(keys[k], keys[k + PITCH], keys[k + 2u * PITCH], keys[k + 3u * PITCH]);
                s1 += q * vec4<f32>(
                    keys[k + 4u * PITCH], keys[k + 5u * PITCH], keys[k + 6u * PITCH], keys[k + 7u * PITCH],
                );
            }
            workgroupBarrier();
        }
        let key0 = vec4<u32>(block + part * 8u) + vec4<u32>(0u, 1u, 2u, 3u);
        let key1 = key0 + 4u;
        s0 = score(s0, group.y, query, key0);
        s1 = score(s1, group.y, query, key1);
        let seen0 = visible(query, key0, high);
        let seen1 = visible(query, key1, high);
        let bits = max(
            select(vec4<u32>(0u), magnitude4(s0), seen0),
            select(vec4<u32>(0u), magnitude4(s1), seen1),
        );
        poison = max(poison, max(max(bits.x, bits.y), max(bits.z, bits.w)));
        s0 = select(vec4<f32>(-1e30), s0, seen0);
        s1 = select(vec4<f32>(-1e30), s1, seen1);
        for (var i = 0u; i < 4u; i++) {
            weights[row * PITCH + part * 8u + i] = s0[i];
            weights[row * PITCH + part * 8u + 4u + i] = s1[i];
        }
        workgroupBarrier();
        var greatest = most;
        for (var i = 0u; i < 32u; i++) {
            greatest = max(greatest, weights[row * PITCH + i]);
        }
        workgroupBarrier();
        let p0 = select(vec4<f32>(0.0), exp4(s0 - greatest), seen0);
        let p1 = select(vec4<f32>(0.0), exp4(s1 - greatest), seen1);
        for (var i = 0u; i < 4u; i++) {
            weights[row * PITCH + part * 8u + i] = p0[i];
            weights[row * PITCH + part * 8u + 4u + i] = p1[i];
        }
        for (var i = local; i < 512u; i += 128u) {
            let key = block + i / 16u;
            let c = chunk + (i % 16u) * 4u;
            let at = (start + key) * p.x_stride + 2u * p.context + head + c;
            var v = vec4<f32>(0.0);
            if (key < high) {
                if (c < p.dim) { v.x = f32(x[at]); }
                if (c + 1u < p.dim) { v.y = f32(x[at + 1u]); }
                if (c + 2u < p.dim) { v.z = f32(x[at + 2u]); }
                if (c + 3u < p.dim) { v.w = f32(x[at + 3u]); }
            }
            values[i] = v;
        }
        workgroupBarrier();
        let shrink = exp4(vec4<f32>(most - greatest)).x;
        most = greatest;
        total *= shrink;
        o0 *= shrink;
        o1 *= shrink;
        o2 *= shrink;
        o3 *= shrink;
        for (var i = 0u; i < 32u; i++) {
            let weight = weights[row * PITCH + i];
            total += weight;
            let v = i * 16u + part * 4u;
            o0 += weight * values[v];
            o1 += weight * values[v + 1u];
            o2 += weight * values[v + 2u];
            o3 += weight * values[v + 3u];
        }
        workgroupBarrier();
    }
    // Each thread saw its own quarter of the scores only.
    poisons[local] = poison;
    workgroupBarrier();
    let quarter = local - part;
    poison = max(max(poisons[quarter], poisons[quarter + 1u]), max(poisons[quarter + 2u], poisons[quarter + 3u]));
    if (query < length) {
        let factor = select(1.0 / total, bitcast<f32>(max(poison, NAN_BITS)), poison >= INFINITY_BITS);
        let at = (start + query) * p.y_stride + head;
        let column = chunk + part * 16u;
        for (var i = 0u; i < 4u; i++) {
            if (column + i < p.dim) { y[at + column + i] = E(o0[i] * factor); }
            if (column + 4u + i < p.dim) { y[at + column + 4u + i] = E(o1[i] * factor); }
            if (column + 8u + i < p.dim) { y[at + column + 8u + i] = E(o2[i] * factor); }
            if (column + 12u + i < p.dim) { y[at + column + 12u + i] = E(o3[i] * factor); }
        }
    }
}

fn visible(query: u32, key: vec4<u32>, high: u32) -> vec4<bool> {
    let distance = max(key, vec4<u32>(query)) - min(key, vec4<u32>(query));
    return (key < vec4<u32>(high)) & (distance <= vec4<u32>(p.window));
}

fn score(dot: vec4<f32>, head: u32, query: u32, key: vec4<u32>) -> vec4<f32> {
    {{SCORE}}
}
