// y = epilogue(x * W^T + bias) with cooperative matrices: products of E, sums in f32. A subgroup holds {{DOWN}} by {{ACROSS}}
// tiles of {{T}} x {{T}} sums; the workgroup's subgroups lie {{SUBGROUPS_DOWN}} by {{SUBGROUPS_ACROSS}}. Fragments come straight from memory
// (the cache is the staging area: no barrier in the loop); W was stored tile by tile for that. Cooperative matrices give
// no access to their elements, so the epilogue takes the sums through a strip of workgroup memory.
struct Immediates { tokens: u32, depth: u32, x_stride: u32, columns: u32, y_stride: u32 }
var<immediate> p: Immediates;
@group(0) @binding(0) var<storage, read> x: array<E>;
@group(0) @binding(1) var<storage, read_write> y: array<{{Y}}>;
@group(1) @binding(0) var<storage, read> weight: array<E>;
@group(1) @binding(1) var<storage, read> bias: array<vec4<f32>>;

alias Rows = coop_mat{{T}}x{{T}}<E, A>;
alias Features = coop_mat{{T}}x{{T}}<E, B>;
alias Sums = coop_mat{{T}}x{{T}}<f32, C>;

const T = {{T}}u;
const WIDTH = {{WIDTH}}u;
var<workgroup> strip: array<f32, {{STRIP}}>;

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let row = (group.y * {{SUBGROUPS_DOWN}}u + subgroup / {{SUBGROUPS_ACROSS}}u) * {{DOWN}}u * T;
    let column = (group.x * {{SUBGROUPS_ACROSS}}u + subgroup % {{SUBGROUPS_ACROSS}}u) * WIDTH;
    // Both are multiples of 32; in this form the compiler sees it too, and loads wide.
    let depth = p.depth / 32u * 32u;
    let x_stride = p.x_stride / 32u * 32u;
    for (var i = local; i < T * T; i += {{THREADS}}u) {
        strip[i] = 0.0;
    }
    workgroupBarrier();
{{ZERO}}
    workgroupBarrier();
    let x_at = row * x_stride;
    let w_at = column * depth;
    for (var k = 0u; k < depth; k += T) {
{{MULTIPLY}}
    }
    let mine = subgroup * T * WIDTH;
{{FINISH}}
}
