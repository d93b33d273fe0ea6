// One vector of each sequence: a thread takes one column through the sequence's rows, summed in f32.
struct Immediates { offsets: u32, columns: u32, stride: u32, mode: u32, skip: u32 }
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<E>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;

// In the order of the backend's `Pooling`.
const CLS = 0u;
const MAX = 1u;
const MEAN = 2u;
const MEAN_SQRT_LEN = 3u;
const WEIGHTED_MEAN = 4u;
const LAST_TOKEN = 5u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * 64u + local;
    let sequence = group.y;
    if (column >= p.columns) {
        return;
    }
    let start = batch[p.offsets + sequence];
    let end = batch[p.offsets + sequence + 1u];
    let first = start + select(0u, p.skip, p.skip < end - start);
    var result = 0.0;
    switch (p.mode) {
        case CLS: {
            result = f32(x[first * p.stride + column]);
        }
        case LAST_TOKEN: {
            result = f32(x[(end - 1u) * p.stride + column]);
        }
        case MAX: {
            result = f32(x[first * p.stride + column]);
            // `max` may drop a NaN; the largest magnitude by its bits does not.
            var poison = bitcast<u32>(result) & 0x7fffffffu;
            for (var row = first + 1u; row < end; row++) {
                let value = f32(x[row * p.stride + column]);
                poison = max(poison, bitcast<u32>(value) & 0x7fffffffu);
                result = max(result, value);
            }
            result = select(result, bitcast<f32>(poison), poison > 0x7f800000u);
        }
        default: {
            let count = f32(end - first);
            var total = count;
            if (p.mode == MEAN_SQRT_LEN) {
                total = sqrt(count);
            }
            var weights = 0.0;
            for (var row = first; row < end; row++) {
                let weight = select(1.0, f32(row - start + 1u), p.mode == WEIGHTED_MEAN);
                weights += weight;
                result += weight * f32(x[row * p.stride + column]);
            }
            result /= select(total, weights, p.mode == WEIGHTED_MEAN);
        }
    }
    y[sequence * p.columns + column] = result;
}
