// One vector of each sequence, summed in f32. A workgroup takes 64 columns; its threads share out the sequence's rows
// among four, and the first of the four puts the parts together.
struct Immediates { offsets: u32, columns: u32, stride: u32, mode: u32, skip: u32 }
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<E>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;

// In the order of the backend's `Pooling`.
const CLS = 0u;
const MAX = 1u;
const MEAN_SQRT_LEN = 3u;
const WEIGHTED_MEAN = 4u;
const LAST_TOKEN = 5u;

var<workgroup> parts: array<f32, 256>;
var<workgroup> poisons: array<u32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * 64u + local % 64u;
    let part = local / 64u;
    let sequence = group.y;
    let start = batch[p.offsets + sequence];
    let end = batch[p.offsets + sequence + 1u];
    let first = start + select(0u, p.skip, p.skip < end - start);
    var low = first;
    var high = end;
    if (p.mode == CLS) {
        high = first + 1u;
    }
    if (p.mode == LAST_TOKEN) {
        low = end - 1u;
    }
    var result = 0.0;
    // `max` may drop a NaN; the largest magnitude by its bits does not.
    var poison = 0u;
    if (p.mode == MAX) {
        result = -3.4e38;
    }
    if (column < p.columns) {
        for (var row = low + part; row < high; row += 4u) {
            let value = f32(x[row * p.stride + column]);
            if (p.mode == MAX) {
                poison = max(poison, bitcast<u32>(value) & 0x7fffffffu);
                result = max(result, value);
            } else {
                result += select(1.0, f32(row - start + 1u), p.mode == WEIGHTED_MEAN) * value;
            }
        }
    }
    parts[local] = result;
    poisons[local] = poison;
    workgroupBarrier();
    if (part != 0u || column >= p.columns) {
        return;
    }
    let count = f32(high - low);
    if (p.mode == MAX) {
        for (var i = 1u; i < 4u; i++) {
            result = max(result, parts[local + i * 64u]);
            poison = max(poison, poisons[local + i * 64u]);
        }
        result = select(result, bitcast<f32>(max(poison, NAN_BITS)), poison >= INFINITY_BITS);
    } else {
        for (var i = 1u; i < 4u; i++) {
            result += parts[local + i * 64u];
        }
        var total = count;
        if (p.mode == MEAN_SQRT_LEN) {
            total = sqrt(count);
        }
        if (p.mode == WEIGHTED_MEAN) {
            // The sum of the places from the first that counts to the last, from 1.
            let before = f32(low - start);
            let all = f32(high - start);
            total = 0.5 * (all * (all + 1.0) - before * (before + 1.0));
        }
        result /= total;
    }
    y[sequence * p.columns + column] = result;
}
