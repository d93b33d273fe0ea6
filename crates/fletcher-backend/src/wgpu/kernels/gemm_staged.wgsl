// As gemm_cooperative.wgsl, with the operands staged in workgroup memory: {{STEP}} columns of the workgroup's rows and features
// at a time, the next ones on their way to registers while these are multiplied. Not for Metal, which cannot load a matrix
// through a pointer to vectors.
struct Immediates { tokens: u32, depth: u32, x_stride: u32, columns: u32, y_stride: u32 }
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<vec4<E>>;
@group(0) @binding(1) var<storage, read_write> y: array<{{Y}}>;
@group(1) @binding(0) var<storage, read> weight: array<vec4<E>>;
@group(1) @binding(1) var<storage, read> bias: array<vec4<f32>>;

alias Rows = coop_mat{{T}}x{{T}}<E, A>;
alias Features = coop_mat{{T}}x{{T}}<E, B>;
alias Sums = coop_mat{{T}}x{{T}}<f32, C>;

const T = {{T}}u;
const WIDTH = {{WIDTH}}u;
// In vectors of four, as all places below.
const PITCH = {{PITCH}}u;
const STRIP_PITCH = {{STRIP_PITCH}}u;
var<workgroup> strip: array<vec4<f32>, {{STRIP}}>;
var<workgroup> rows: array<vec4<E>, {{ROW_QUADS}}>;
var<workgroup> features: array<vec4<E>, {{FEATURE_QUADS}}>;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let down = subgroup / {{SUBGROUPS_ACROSS}}u;
    let across = subgroup % {{SUBGROUPS_ACROSS}}u;
    let row = (group.y * {{SUBGROUPS_DOWN}}u + down) * {{DOWN}}u * T;
    let column = (group.x * {{SUBGROUPS_ACROSS}}u + across) * WIDTH;
    let depth = p.depth;
    for (var i = local; i < T * T / 4u; i += {{THREADS}}u) {
        strip[i] = vec4<f32>(0.0);
    }
    workgroupBarrier();
{{ZERO}}
    // Each thread carries the same places of every step.
    let x_base = group.y * {{ROWS}}u * (p.x_stride / 4u);
    let w_base = group.x * {{COLUMNS}}u * (depth / 4u);
{{PLACES}}
    {
        let rows_to = 0u;
        let features_to = 0u;
{{STORE_STEP}}
    }
    workgroupBarrier();
    for (var k = 0u; k < depth; k += {{STEP}}u) {
        let next = min(k + {{STEP}}u, depth - {{STEP}}u);
        let turn = k / {{STEP}}u % 2u;
        let rows_from = {{ROWS_FROM}};
        let features_from = {{FEATURES_FROM}};
{{LOAD_STEP}}
{{MULTIPLY}}
{{BEFORE_STORE}}
        let rows_to = {{ROWS_TO}};
        let features_to = {{FEATURES_TO}};
{{STORE_STEP}}
        workgroupBarrier();
    }
    let mine = subgroup * T * STRIP_PITCH;
{{FINISH}}
}
