//! Gives the shared library its soname, which changes with the C interface's version, if `install-libblt` builds it. What
//! cargo builds otherwise is called libblt.so and has none: it can be loaded as it is.

/// `BLT_ABI_VERSION` of `src/ffi/status.rs`; `.ci/steps/c` checks that both are the same.
const ABI_VERSION: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name| std::env::var(name).unwrap_or_default();
    println!("cargo:rerun-if-env-changed=BLT_SONAME");
    if var("CARGO_FEATURE_CAPI").is_empty() || var("BLT_SONAME").is_empty() {
        return;
    }
    let name = match var("CARGO_CFG_TARGET_OS").as_str() {
        "linux" | "android" | "freebsd" => format!("-soname,libblt.so.{ABI_VERSION}"),
        "macos" => format!("-install_name,@rpath/libblt.{ABI_VERSION}.dylib"),
        _ => return,
    };
    println!("cargo:rustc-cdylib-link-arg=-Wl,{name}");
}
