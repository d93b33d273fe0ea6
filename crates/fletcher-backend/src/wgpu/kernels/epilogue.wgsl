// What happens to four neighbouring sums of one row.
fn finish(sums: vec4<f32>, row: u32, column: u32) {
    if (row >= p.tokens || column >= p.columns) {
        return;
    }
    let s = sums{{BIAS}};
    {{STORE}}
}
