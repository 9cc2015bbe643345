//! Compiles the API with a Protocol Buffers compiler written in Rust, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["mycelium.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // The command line's `--json` shows the messages as they are.
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(files)?;
    Ok(())
}
