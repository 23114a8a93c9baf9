//! Embeds new migrations on the next build.

fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
}
