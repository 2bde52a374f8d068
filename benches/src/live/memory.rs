//! How much of the machine's memory one more idle instance takes.
//!
//! The measure is the machine's `MemAvailable` before and after a number of instances have been made and
//! have answered once. So the kernel's part (namespaces, mounts, cgroups, page tables, sockets) counts, and
//! what an engine runs beside each container; memory that instances share counts once.

use serde::Serialize;

use super::error::{Context, LiveError, Result};
use super::figures::{median, spread};
use super::kinds::Kinds;
use super::lab::{Lab, destroy};

/// Which instances are idle.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// The kind of sandbox.
    pub sandbox: String,
    /// Kinds to compare with.
    pub against: Vec<String>,
    /// How many idle instances, at least 1.
    pub instances: u32,
    /// What is idle: `noop` (a static program) or `python` (a file that returns its event).
    pub function: String,
    /// Rounds in which the kinds take turns.
    pub rounds: u32,
}

/// What idle instances took.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Each kind.
    pub rows: Vec<MemoryRow>,
    /// The first kind beside each of the others.
    pub ratios: Vec<MemoryRatio>,
}

/// One kind.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryRow {
    /// Its name.
    pub sandbox: String,
    /// What it keeps a function from, and how.
    pub isolation: String,
    /// How many were idle.
    pub instances: u32,
    /// Of one instance, KiB.
    pub kib: f64,
    /// The lowest and the highest of the rounds.
    pub spread: [f64; 2],
}

/// How many times less memory one kind takes than another.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryRatio {
    /// This one takes that many times less
    pub of: String,
    /// than this one.
    pub against: String,
    /// The median of the rounds' ratios.
    pub memory: f64,
    /// The lowest and the highest of them.
    pub spread: [f64; 2],
}

/// Measures the memory of idle instances.
///
/// # Errors
///
/// [`LiveError`](super::LiveError): a kind is not available, or an instance failed.
pub async fn memory(config: &MemoryConfig, kinds: &dyn Kinds) -> Result<Memory> {
    let lab = Lab::new(&config.function)?;
    let names: Vec<&String> = std::iter::once(&config.sandbox).chain(&config.against).collect();
    let mut sides: Vec<(String, String, Vec<f64>)> = Vec::new();
    let all = u64::from(config.rounds) * names.len() as u64;
    let mut done = 0;
    for _ in 0..config.rounds {
        for (n, name) in names.iter().enumerate() {
            let (name, isolation, kib) = marginal(&lab, kinds, name, config.instances).await?;
            match sides.get_mut(n) {
                Some((.., measured)) => measured.push(kib),
                None => sides.push((name, isolation, vec![kib])),
            }
            done += 1;
            kinds.is_over(done, all);
        }
    }
    let rows: Vec<MemoryRow> = sides
        .iter()
        .map(|(name, isolation, measured)| MemoryRow {
            sandbox: name.clone(),
            isolation: isolation.clone(),
            instances: config.instances,
            kib: median(measured.clone()),
            spread: spread(measured.clone()),
        })
        .collect();
    let (of, _, first) = &sides[0];
    let ratios: Vec<MemoryRatio> = sides[1..]
        .iter()
        .map(|(name, _, measured)| {
            let each: Vec<f64> = measured.iter().zip(first).map(|(b, a)| b / a.max(1.0)).collect();
            let (of, against) = (of.clone(), name.clone());
            MemoryRatio { of, against, memory: median(each.clone()), spread: spread(each) }
        })
        .collect();
    Ok(Memory { rows, ratios })
}

/// One turn: name, isolation, KiB of an instance. By a factory of its own, since what a pool keeps of the
/// last turn would not be taken again.
async fn marginal(
    lab: &Lab,
    kinds: &dyn Kinds,
    name: &str,
    instances: u32,
) -> Result<(String, String, f64)> {
    let kind = lab.kind(kinds, name).await?;
    let measured = async {
        let before = available()?;
        let idle = lab.idle(&*kind.factory, instances as usize, false).await?;
        let after = available();
        destroy(&idle).await;
        Ok((before - after?) / f64::from(instances))
    };
    let measured: Result<f64> = measured.await;
    kind.factory.shutdown().await;
    Ok((kind.name.to_owned(), kind.isolation, measured.context(|| name.to_owned())?))
}

/// What the machine could give to programs, KiB.
fn available() -> Result<f64> {
    // The kernel keeps a part of its sums by processor until this is read; only root may read it.
    let _ = std::fs::read("/proc/sys/vm/stat_refresh");
    let text = std::fs::read_to_string("/proc/meminfo")
        .context(|| "/proc/meminfo cannot be read; mount /proc".to_owned())?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok());
    value.ok_or_else(|| LiveError::new("/proc/meminfo tells no MemAvailable; Linux 3.14 is needed"))
}
