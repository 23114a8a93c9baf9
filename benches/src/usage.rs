//! What processes have used so far (`proc(5)`).

use std::fs;

use anyhow::Context;

/// `USER_HZ`, the unit of `/proc/PID/stat`: part of Linux' stable interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor seconds and peak resident bytes of a process.
pub(crate) fn usage(process: &str) -> anyhow::Result<(f64, u64)> {
    let [own, _] = processor_seconds(process)?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok((own, kib << 10))
}

/// Processor seconds of a process and its children, those that have ended too.
pub(crate) fn tree(pid: u32) -> anyhow::Result<f64> {
    let [own, ended] = processor_seconds(&pid.to_string())?;
    let mut sum = own + ended;
    for child in fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?.split_whitespace() {
        // One that ends just now is not counted anywhere.
        sum += processor_seconds(child).map_or(0.0, |[own, ended]| own + ended);
    }
    Ok(sum)
}

/// Of a process itself and of its children that were waited for.
fn processor_seconds(process: &str) -> anyhow::Result<[f64; 2]> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("parse stat")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let seconds = |at: usize| -> anyhow::Result<f64> {
        Ok((fields[at].parse::<f64>()? + fields[at + 1].parse::<f64>()?) / TICKS_PER_SECOND)
    };
    Ok([seconds(11)?, seconds(13)?])
}
