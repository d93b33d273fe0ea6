// Softmax attention of a sequence over itself with cooperative matrices, for heads of {{DIM}} columns: 32 queries of one head for
// a workgroup of four subgroups, 64 keys at a time. Cooperative matrices cannot be scaled row by row, so no running maximum:
// a first pass over the keys finds each row's maximum, a second one recomputes the scores and adds up the weighted values,
// and the sum of the weights divides the result on its way out. A sequence of at most 64 keys keeps its scores between the
// passes. Memory is read in units of {{UNIT}} elements.
struct Immediates {
    tiles: u32, x_stride: u32, y_stride: u32, context: u32, dim: u32, scale: f32, window: u32, positions: u32,
}
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<{{X}}>;
@group(0) @binding(1) var<storage, read_write> y: array<E>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(1) @binding(0) var<storage, read> relative: array<f32>;

alias Left = coop_mat{{T}}x{{T}}<E, A>;
alias Right = coop_mat{{T}}x{{T}}<E, B>;
alias Sums = coop_mat{{T}}x{{T}}<f32, C>;

const T = {{T}}u;
const DIM = {{DIM}}u;
// Tiles of 32 rows and the threads of a row.
const DOWN = {{DOWN}}u;
const LANES = {{LANES}}u;
const THREADS = {{THREADS}}u;
const SCORE_PITCH = {{SCORE_PITCH}}u;
const WEIGHT_PITCH = {{WEIGHT_PITCH}}u;
// In units, as all that follows where memory is read.
const UNIT = {{UNIT}}u;
const VALUE_PITCH = {{VALUE_PITCH}}u;
var<workgroup> zeros: array<f32, {{TILE}}>;
var<workgroup> scores: array<f32, {{SCORE_VALUES}}>;
var<workgroup> weights: array<E, {{WEIGHT_VALUES}}>;
var<workgroup> values: array<{{X}}, {{VALUES}}>;
var<workgroup> shares: array<f32, {{THREADS}}>;
var<workgroup> poisons: array<u32, {{THREADS}}>;
var<workgroup> factors: array<f32, 32>;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let start = batch[p.tiles + 3u * group.x];
    let length = batch[p.tiles + 3u * group.x + 1u];
    let first = batch[p.tiles + 3u * group.x + 2u];
    let head = group.y * DIM;
    let stride = p.x_stride / UNIT;
    let down = subgroup % DOWN;
    let across = subgroup / DOWN;
    let row = local / LANES;
    let part = local % LANES;
    let query = first + row;
    let low = select(0u, first - min(p.window, first), p.window != 0xffffffffu);
    let high = select(length, min(length, first + 32u + min(p.window, length)), p.window != 0xffffffffu);
    for (var i = local; i < T * T; i += THREADS) {
        zeros[i] = 0.0;
    }
    workgroupBarrier();
    let query_at = (start + first + down * T) * stride + head / UNIT;
{{QUERIES}}

    var most = -1e30;
    var total = 0.0;
    var poison = 0u;
    for (var block = low; block < high; block += 64u) {
        let key_at = (start + block) * stride + (p.context + head) / UNIT;
{{SCORES}}
        workgroupBarrier();
        for (var c = part; c < 64u; c += LANES) {
            let s = score(scores[row * SCORE_PITCH + c], group.y, query, block + c);
            let seen = visible(query, block + c, high);
            poison = max(poison, select(0u, bitcast<u32>(s) & 0x7fffffffu, seen));
            most = max(most, select(-1e30, s, seen));
        }
        workgroupBarrier();
    }
    shares[local] = most;
    poisons[local] = poison;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i++) {
        most = max(most, shares[row * LANES + i]);
        poison = max(poison, poisons[row * LANES + i]);
    }
    workgroupBarrier();

{{ZERO}}
    for (var block = low; block < high; block += 64u) {
        if (high - low > 64u) {
            let key_at = (start + block) * stride + (p.context + head) / UNIT;
{{SCORES}}
        }
        for (var i = local; i < 64u * DIM / UNIT; i += THREADS) {
            let key = i / (DIM / UNIT);
            let column = i % (DIM / UNIT);
            let at = (start + block + key) * stride + (2u * p.context + head) / UNIT + column;
            // By selection: what lies behind the sequence may be anything, and 0 times it NaN.
            values[key * VALUE_PITCH + column] = select({{X}}(), x[at], block + key < high);
        }
        workgroupBarrier();
        for (var c = part; c < 64u; c += LANES) {
            let s = score(scores[row * SCORE_PITCH + c], group.y, query, block + c);
            let weight = select(0.0, exp(s - most), visible(query, block + c, high));
            total += weight;
            weights[row * WEIGHT_PITCH + c] = E(weight);
        }
        workgroupBarrier();
        for (var k = 0u; k < 64u; k += T) {
            let weight_at = down * T * WEIGHT_PITCH + k;
            let l = coopLoadT<Left>(&weights[weight_at], WEIGHT_PITCH);
            let value_at = k * VALUE_PITCH + across * T / UNIT;
{{MULTIPLY}}
        }
        workgroupBarrier();
    }
    shares[local] = total;
    workgroupBarrier();
    if (part == 0u) {
        total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += shares[local + i];
        }
        let bad = bitcast<f32>(max(poison, NAN_BITS));
        factors[row] = select(1.0 / max(total, 1e-30), bad, poison >= INFINITY_BITS);
    }
{{FINISH}}
}

fn visible(query: u32, key: u32, high: u32) -> bool {
    return key < high && max(key, query) - min(key, query) <= p.window;
}

fn score(dot: f32, head: u32, query: u32, key: u32) -> f32 {
    {{SCORE}}
}
