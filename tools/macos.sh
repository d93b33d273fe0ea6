#!/usr/bin/env bash
# What can be said of macOS without a Mac: the lints for it, and that the program links.
#
#   pip install ziglang cargo-zigbuild; rustup target add aarch64-apple-darwin
#   tools/macos.sh [FOLDER]         # lints the workspace, links the program; FOLDER: target folder, target/macos otherwise
#   tools/macos.sh --no-zig         # lints what has no C in it, with the Rust target alone
#
# The linker is shown lists of the symbols that the program takes from the system; Apple's own are not needed.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-apple-darwin
if [ "${1:-}" = --no-zig ]; then
    cargo clippy --locked -p fletcher-kernels -p fletcher-core -p fletcher-backend --target $target -- -D warnings
    exit
fi
export CARGO_TARGET_DIR=${1:-$PWD/target/macos}
# At a fixed place, since another one would have everything built again.
stubs=$CARGO_TARGET_DIR/stubs

# stub FILE INSTALL_NAME SYMBOLS
stub() {
    mkdir -p "$(dirname "$stubs/$1")"
    cat >"$stubs/$1" <<TBD
--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos, x86_64-macos ]
install-name: '$2'
current-version: 1
exports:
  - targets: [ arm64-macos, x86_64-macos ]
    symbols: [ $3 ]
...
TBD
}
framework() {
    stub "F/$1.framework/$1.tbd" "/System/Library/Frameworks/$1.framework/Versions/A/$1" "$2"
}
framework Accelerate _cblas_sgemm
framework CoreFoundation "_CFRetain, _CFRelease"
framework CoreGraphics "_CGColorSpaceCreateWithName, _kCGColorSpaceDisplayP3, _kCGColorSpaceExtendedLinearSRGB, \
_kCGColorSpaceExtendedSRGB, _kCGColorSpaceSRGB"
framework Foundation "_NSLog, _NSKeyValueChangeNewKey"
framework Metal "_MTLCreateSystemDefaultDevice, _MTLCopyAllDevices"
for name in AppKit IOKit IOSurface QuartzCore Security SystemConfiguration; do
    framework $name _NOTHING
done
stub lib/libiconv.tbd /usr/lib/libiconv.2.dylib _iconv
stub lib/libobjc.tbd /usr/lib/libobjc.A.dylib "_class_addIvar, _class_addMethod, _class_copyMethodList, _class_getClassMethod, \
_class_getInstanceMethod, _class_getInstanceVariable, _class_getName, _class_getSuperclass, _class_isMetaClass, \
_class_respondsToSelector, _ivar_getOffset, _method_getName, _method_getTypeEncoding, _object_getClass, _objc_alloc, \
_objc_allocateClassPair, _objc_autorelease, _objc_autoreleasePoolPop, _objc_autoreleasePoolPush, \
_objc_autoreleaseReturnValue, _objc_begin_catch, _objc_destroyWeak, _objc_disposeClassPair, _objc_end_catch, \
_objc_exception_throw, _objc_getClass, _objc_initWeak, _objc_loadWeakRetained, _objc_msgSend, _objc_msgSendSuper, \
_objc_opt_class, _objc_registerClassPair, _objc_release, _objc_retain, _objc_retainAutoreleaseReturnValue, \
_objc_retainAutoreleasedReturnValue, _sel_getName, _sel_registerName"

cargo-zigbuild clippy --locked --workspace --target $target -- -D warnings
RUSTFLAGS="-C link-arg=-F$stubs/F -C link-arg=-L$stubs/lib" \
    cargo-zigbuild build --locked -p fletcher --target $target
file "$CARGO_TARGET_DIR/$target/debug/fletcher"
