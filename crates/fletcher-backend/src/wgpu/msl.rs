//! The translation to Metal of every kernel, made and checked without a Mac.
//!
//! What is asserted is what a Mac's owner would otherwise find out the hard way: Apple's compiler
//! miscompiles simdgroup matrices in kernels whose thread limit is 32, and naga emits that limit
//! from the workgroup's size; zeroed workgroup memory and bounded loops cost time in every
//! kernel; an accumulator in half precision costs the vectors their last digits.

use fletcher_core::backend::Epilogue;
use fletcher_core::spec::Activation;
use naga::back::msl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{ValidationFlags, Validator};

use super::pipelines;
use super::shader::{self, CooperativeAttention, Element, Kernel, Target, Tiling};

/// Lanes of an Apple simdgroup.
const LANES: u32 = 32;
/// Apple's cooperative tile.
const TILE: u32 = 8;
/// Workgroup memory that every Apple GPU has.
const WORKGROUP_BYTES: u32 = 32 << 10;

/// Every kernel that a Mac can be asked to run.
fn kernels(element: Element) -> Vec<Kernel> {
    use Activation::{GeluErf, GeluTanh, Identity, Relu, Silu, Tanh};
    let mut kernels = vec![Kernel::Embed, Kernel::Rotary, Kernel::Pool];
    for in_place in [false, true] {
        for held in [None, Some(1), Some(3), Some(8)] {
            kernels.push(Kernel::Norm { in_place, held });
        }
    }
    let mut epilogues = vec![Epilogue::Store, Epilogue::Accumulate];
    for activation in [GeluErf, GeluTanh, Silu, Relu, Tanh, Identity] {
        epilogues.extend([Epilogue::Activate(activation), Epilogue::Gate(activation)]);
    }
    let large = Tiling::large(target(element), TILE, false, 128);
    for tiling in [None, Some(Tiling::small(TILE, false)), Some(large)] {
        kernels.extend(epilogues.iter().map(|&epilogue| Kernel::Gemm { epilogue, tiling }));
    }
    for relative in [false, true] {
        let heads = (1..=256).filter(|&dim| shader::attention_fits(target(element), TILE, dim));
        let cooperative = heads
            .map(|head_dim| Some(CooperativeAttention { tile: TILE, head_dim, vectors: false }))
            .chain([None]);
        kernels.extend(cooperative.map(|cooperative| Kernel::Attention { relative, cooperative }));
    }
    kernels
}

fn is_cooperative(kernel: Kernel) -> bool {
    matches!(
        kernel,
        Kernel::Gemm { tiling: Some(_), .. } | Kernel::Attention { cooperative: Some(_), .. }
    )
}

fn validate(wgsl: &str) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(wgsl)
        .unwrap_or_else(|e| panic!("{}\n{wgsl}", e.emit_to_string(wgsl)));
    let info = Validator::new(ValidationFlags::all(), msl::supported_capabilities())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}\n{wgsl}", e.emit_to_string(wgsl)));
    (module, info)
}

/// A kernel's Metal text, as wgpu's Metal half makes it, and its bytes of workgroup memory.
fn translate(wgsl: &str, checks: wgpu::ShaderRuntimeChecks, zeroed: bool) -> (String, u32) {
    let (module, info) = validate(wgsl);
    let mut resources = msl::EntryPointResources::default();
    let mut workgroup_bytes = 0;
    for (_, global) in module.global_variables.iter() {
        if let Some(binding) = &global.binding {
            let buffer = Some((binding.group * 3 + binding.binding) as u8);
            let target = msl::BindTarget { buffer, mutable: true, ..Default::default() };
            resources.resources.insert(*binding, target);
        }
        if global.space == naga::AddressSpace::WorkGroup {
            let size = module.types[global.ty].inner.size(module.to_ctx());
            workgroup_bytes += size.next_multiple_of(16);
        }
    }
    resources.immediates_buffer = Some(10);
    resources.sizes_buffer = Some(11);
    let bounds = match checks.bounds_checks {
        true => BoundsCheckPolicy::Restrict,
        false => BoundsCheckPolicy::Unchecked,
    };
    let options = msl::Options {
        lang_version: (2, 4),
        per_entry_point_map: [("main".to_owned(), resources)].into(),
        bounds_check_policies: BoundsCheckPolicies {
            index: bounds,
            buffer: bounds,
            image_load: bounds,
            binding_array: bounds,
        },
        zero_initialize_workgroup_memory: zeroed,
        force_loop_bounding: checks.force_loop_bounding,
        emit_int_div_checks: checks.int_div_checks,
        ..Default::default()
    };
    let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{e}\n{wgsl}"));
    (text, workgroup_bytes)
}

/// What is wrong with a kernel's translation.
fn findings(wgsl: &str, cooperative: bool) -> Vec<String> {
    let zeroed = pipelines::ZERO_WORKGROUP_MEMORY;
    let (text, workgroup_bytes) = translate(wgsl, pipelines::runtime_checks(), zeroed);
    let mut findings = findings_in(&text, workgroup_bytes, cooperative);
    findings.extend(stores_with_expressions(wgsl).into_iter().map(str::to_owned));
    findings
}

fn findings_in(text: &str, workgroup_bytes: u32, cooperative: bool) -> Vec<String> {
    let mut findings = Vec::new();
    let mut check = |ok: bool, finding: String| findings.extend((!ok).then_some(finding));
    let limit = thread_limit(text);
    check(limit.is_some_and(|limit| limit >= 64), format!("a thread limit of {limit:?}"));
    check(
        workgroup_bytes <= WORKGROUP_BYTES,
        format!("{workgroup_bytes} bytes of workgroup memory"),
    );
    check(!text.contains("loop_bound"), "a counter that bounds a loop".into());
    check(!text.contains("metal::min(unsigned("), "a clamped index".into());
    check(!zeroes_workgroup_memory(text), "workgroup memory zeroed at the start".into());
    check(
        text.contains("simdgroup_multiply_accumulate") == cooperative,
        "matrix instructions where there should be none, or none where there should be".into(),
    );
    check(
        !text.contains("metal::simdgroup_half8x8 NagaCooperativeMultiplyAdd"),
        "matrix sums in half precision".into(),
    );
    check(!has_half_variables(text), "a variable in half precision".into());
    findings
}

/// The number in `[[max_total_threads_per_threadgroup(n)]]`.
fn thread_limit(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("max_total_threads_per_threadgroup(")?;
    rest.split_once(')')?.0.parse().ok()
}

/// naga's way to zero workgroup variables: the first thread assigns them whole.
fn zeroes_workgroup_memory(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| {
        pair[0].starts_with("if (") && pair[0].ends_with("== 0u) {") && pair[1].ends_with(" = {};")
    })
}

/// Whether anything that changes while a kernel runs is a half: sums are, fragments are not.
fn has_half_variables(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        ["half ", "metal::half", "E "].iter().any(|half| line.starts_with(half))
            && (line.ends_with("= {};") || line.ends_with("= 0.0;"))
    })
}

/// Stores of matrices whose arguments are more than names. naga 30 evaluates such arguments behind
/// the store that uses them.
fn stores_with_expressions(wgsl: &str) -> Vec<&str> {
    let is_name = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == '_');
    let named = |line: &str| {
        let (_, arguments) = line.split_once('(')?;
        let (matrix, rest) = arguments.strip_suffix(");")?.split_once(", &")?;
        let (place, stride) = rest.split_once("], ")?;
        let (buffer, index) = place.split_once('[')?;
        Some([matrix, buffer, index, stride].into_iter().all(is_name))
    };
    let stores = wgsl.lines().map(str::trim).filter(|line| line.starts_with("coopStore"));
    stores.filter(|line| named(line) != Some(true)).collect()
}

fn target(element: Element) -> Target {
    Target { element, lanes: LANES, memory: WORKGROUP_BYTES }
}

#[test]
fn every_kernel_translates_to_sound_metal() {
    let mut cooperative = 0;
    for element in [Element::F32, Element::F16] {
        for kernel in kernels(element) {
            let wgsl = shader::text(kernel, target(element));
            let found = findings(&wgsl, is_cooperative(kernel));
            assert!(found.is_empty(), "{kernel:?} in {element:?}: {}", found.join("; "));
            cooperative += usize::from(is_cooperative(kernel));
        }
    }
    assert!(cooperative > 50, "{cooperative} cooperative kernels");
}

/// Vulkan's larger tiles have no Metal translation and no device in CI; they must at least be
/// valid.
#[test]
fn every_kernel_of_larger_tiles_is_valid() {
    let vulkan = Target { memory: 48 << 10, ..target(Element::F16) };
    for tile in [8, 16] {
        let mut kernels = Vec::new();
        for staged in [false, true] {
            let small = Tiling::small(tile, staged);
            let large = [96, 128].map(|depth| Tiling::large(vulkan, tile, staged, depth));
            for tiling in [small, large[0], large[1]] {
                for epilogue in [Epilogue::Gate(Activation::GeluErf), Epilogue::Accumulate] {
                    kernels.push(Kernel::Gemm { epilogue, tiling: Some(tiling) });
                }
            }
        }
        for dim in (1..=256).filter(|&dim| shader::attention_fits(vulkan, tile, dim)) {
            let form = CooperativeAttention { tile, head_dim: dim, vectors: true };
            kernels.push(Kernel::Attention { relative: true, cooperative: Some(form) });
        }
        for kernel in kernels {
            validate(&shader::text(kernel, vulkan));
        }
    }
}

/// The checks above must be able to fail.
#[test]
fn each_property_is_checked() {
    let gemm = Kernel::Gemm { epilogue: Epilogue::Store, tiling: Some(Tiling::small(TILE, false)) };
    let wgsl = shader::text(gemm, target(Element::F16));
    assert_eq!(findings(&wgsl, true), Vec::<String>::new());
    let changed = |changes: &[(&str, &str)]| {
        changes.iter().fold(wgsl.clone(), |wgsl, (part, other)| {
            assert!(wgsl.contains(part), "{part}\n{wgsl}");
            wgsl.replace(part, other)
        })
    };
    let broken = |changes: &[(&str, &str)]| findings(&changed(changes), true).join("; ");
    let few = broken(&[("@workgroup_size(128)", "@workgroup_size(32)")]);
    assert!(few.contains("thread limit"), "{few}");
    let large = broken(&[("array<f32, 512>", "array<f32, 51200>")]);
    assert!(large.contains("workgroup memory"), "{large}");
    let half = broken(&[
        ("coop_mat8x8<f32, C>", "coop_mat8x8<f16, C>"),
        ("array<f32, 512>", "array<f16, 512>"),
        ("vec4<f32>(strip[at], strip[at + 1u], strip[at + 2u], strip[at + 3u])", "vec4<f32>(0.0)"),
    ]);
    assert!(half.contains("half precision"), "{half}");
    let store = "coopStoreT(done_0_0, &strip[to_0_0], WIDTH);";
    let early = broken(&[(store, "coopStoreT(s_0_0, &strip[p.columns], p.tokens);")]);
    assert!(early.contains("coopStoreT(s_0_0"), "{early}");
    let plain = findings(&wgsl, false).join("; ");
    assert!(plain.contains("matrix instructions"), "{plain}");
    let all = |checks, zeroed| {
        let (text, bytes) = translate(&wgsl, checks, zeroed);
        findings_in(&text, bytes, true).join("; ")
    };
    let zeroed = all(pipelines::runtime_checks(), true);
    assert!(zeroed.contains("zeroed"), "{zeroed}");
    let checked = all(wgpu::ShaderRuntimeChecks::checked(), false);
    assert!(checked.contains("bounds a loop") && checked.contains("clamped index"), "{checked}");
}
