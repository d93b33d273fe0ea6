// Softmax attention of a sequence over itself with cooperative matrices, for heads of {{DIM}} columns: {{QUERIES_OF_ALL}} queries of one head
// for a workgroup of four subgroups, {{T}} for each, 64 keys at a time. Keys and values lie in workgroup memory for all; scores
// and weights are each subgroup's own, the weights where the keys were. Cooperative matrices cannot be scaled row by row,
// so no running maximum: of a sequence with more than 64 keys, a first pass finds each row's maximum and a second one
// computes the scores again. The sum of the weights divides the result on its way out. Memory that matrices are loaded
// from is read in units of {{UNIT}} elements.
struct Immediates {
    tiles: u32, x_stride: u32, y_stride: u32, context: u32, dim: u32, scale: f32, window: u32, positions: u32,
}
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<{{X}}>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<E>>;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(1) @binding(0) var<storage, read> relative: array<f32>;

alias Left = coop_mat{{T}}x{{T}}<E, A>;
alias Right = coop_mat{{T}}x{{T}}<E, B>;
alias Sums = coop_mat{{T}}x{{T}}<f32, C>;

const T = {{T}}u;
const DIM = {{DIM}}u;
// Of all subgroups.
const QUERIES = {{QUERIES_OF_ALL}}u;
const THREADS = {{THREADS}}u;
// Lanes of a row.
const LANES = {{LANES}}u;
const UNIT = {{UNIT}}u;
// In units.
const HEAD = {{HEAD}}u;
const PITCH = {{PITCH}}u;
const WEIGHT_PITCH = {{WEIGHT_PITCH}}u;
const SCORE_PITCH = {{SCORE_PITCH}}u;
var<workgroup> zeros: array<{{S}}, {{ZEROS}}>;
var<workgroup> scores: array<{{S}}, {{SCORE_UNITS}}>;
var<workgroup> keys: array<{{X}}, {{KEY_UNITS}}>;
var<workgroup> values: array<{{X}}, {{VALUE_UNITS}}>;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let start = batch[p.tiles + 3u * group.x];
    let length = batch[p.tiles + 3u * group.x + 1u];
    let first = batch[p.tiles + 3u * group.x + 2u];
    let head = group.y * HEAD;
    // A row takes a multiple of 32 elements; in this form the compiler sees it too, and loads wide.
    let stride = p.x_stride / 32u * (32u / UNIT);
    let context = p.context / 16u * (16u / UNIT);
    let mine = subgroup * T;
    let row = mine + lane / LANES;
    let part = lane % LANES;
    let query = first + row;
    let low = select(0u, first - min(p.window, first), p.window != 0xffffffffu);
    let high = select(length, min(length, first + QUERIES + min(p.window, length)), p.window != 0xffffffffu);
    for (var i = local; i < {{ZEROS}}u; i += THREADS) {
        zeros[i] = {{S}}();
    }
    let query_at = (start + first + mine) * stride + head;
{{QUERIES}}

    var most = UNSEEN;
    var total = 0.0;
    var poison = 0u;
    if (high - low > 64u) {
        for (var block = low; block < high; block += 64u) {
            let key_at = (start + block) * stride + context + head;
{{STAGE_KEYS}}
            workgroupBarrier();
{{SCORES}}
            workgroupBarrier();
{{READ}}
{{LARGEST}}
        }
    }
    workgroupBarrier();
{{ZERO}}
    for (var block = low; block < high; block += 64u) {
        let key_at = (start + block) * stride + context + head;
        // Values by selection: what lies behind the sequence may be anything, and 0 times it NaN.
{{STAGE_BOTH}}
        workgroupBarrier();
{{SCORES}}
        workgroupBarrier();
{{READ}}
        if (high - low <= 64u) {
{{LARGEST}}
        }
{{SHARE_MOST}}
{{WEIGHTS}}
        workgroupBarrier();
        for (var k = 0u; k < 64u; k += T) {
            let weight_at = mine * WEIGHT_PITCH + k / UNIT;
            let l = coopLoadT<Left>(&keys[weight_at], WEIGHT_PITCH);
            let value_at = k * PITCH;
{{MULTIPLY}}
        }
        workgroupBarrier();
    }
{{SHARE_TOTAL}}
    let bad = bitcast<f32>(max(poison, NAN_BITS));
    let factor = select(1.0 / max(total, 1e-30), bad, poison >= INFINITY_BITS);
{{FINISH}}
}

fn visible(query: u32, key: u32, high: u32) -> vec4<bool> {
    let k = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    let q = vec4<u32>(query);
    return (k < vec4<u32>(high)) & (max(k, q) - min(k, q) <= vec4<u32>(p.window));
}

// What no weight is left of, and what a maximum does not see; and the bits of its magnitude.
const UNSEEN = -1e30;
const UNSEEN_BITS = 0x7149f2cau;

fn masked(s: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(UNSEEN), s, seen);
}

fn largest(s: vec4<f32>) -> f32 {
    return max(max(s.x, s.y), max(s.z, s.w));
}

// Beyond the sequence there may be NaN, which does not count.
fn largest_bits(s: vec4<f32>) -> u32 {
    let all = magnitude4(s);
    let bits = select(all, vec4<u32>(0u), all == vec4<u32>(UNSEEN_BITS));
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn score(dot: vec4<f32>, head: u32, query: u32, first: u32) -> vec4<f32> {
    let key = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
    {{SCORE}}
}

{{ACCESS}}
