//! Embeds new migrations, and looks at what queries answer, on the next build.

fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
    println!("cargo::rerun-if-changed=../../.sqlx");
}
