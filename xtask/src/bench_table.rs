//! The README's table of comparisons, from the records under `bench/record/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

const README: &str = "README.md";
const BEGIN: &str = "<!-- cargo xtask bench-table -->\n";
const END: &str = "<!-- end of bench-table -->\n";
/// A record made while others used more of the machine than this is not shown.
const FOREIGN_SHARE_MAX: f64 = 0.05;
/// The workloads in the order of the columns.
const WORKLOADS: [&str; 4] =
    ["64 tokens", "texts", "one text of 16 tokens", "one text of 128 tokens"];

const HEAD: &str = "\
| model | peer | 64 tokens, vectors/s | texts/s | one of 16 tokens, ms | of 128, ms |
|---|---|---|---|---|---|";

/// Writes the table.
pub(crate) fn run(root: &Path) -> Result<()> {
    let (old, new) = update(root)?;
    if old != new {
        std::fs::write(root.join(README), new).context(README)?;
    }
    Ok(())
}

/// Whether the README's table is the one that the records give.
pub(crate) fn is_current(root: &Path) -> Result<bool> {
    let (old, new) = update(root)?;
    Ok(old == new)
}

/// The README as it is and as it should be.
fn update(root: &Path) -> Result<(String, String)> {
    let old = std::fs::read_to_string(root.join(README)).context(README)?;
    let new = replace(&old, &table(&records(root)?))?;
    Ok((old, new))
}

fn replace(readme: &str, table: &str) -> Result<String> {
    let Some((before, rest)) = readme.split_once(BEGIN) else { bail!("{README}: no `{BEGIN}`") };
    let Some((_, after)) = rest.split_once(END) else { bail!("{README}: no `{END}`") };
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// The newest pair of each machine, model, peer and precision.
fn records(root: &Path) -> Result<BTreeMap<[String; 4], Value>> {
    let mut newest: BTreeMap<[String; 4], Value> = BTreeMap::new();
    let folder = root.join("bench/record");
    for machine in std::fs::read_dir(&folder).context("bench/record")? {
        let machine = machine?.path();
        let Ok(files) = std::fs::read_dir(&machine) else { continue };
        for file in files {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            let record: Value =
                serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            let quiet = record["foreign_share"].as_f64().is_some_and(|s| s <= FOREIGN_SHARE_MAX);
            if record["kind"] != "pair" || !quiet {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            let name = machine.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let peer = &record["peer"];
            let key = [name, text(&record["model"]), text(&peer["precision"]), text(&peer["name"])];
            let newer = |old: &Value| text(&record["date"]) >= text(&old["date"]);
            if newest.get(&key).is_none_or(newer) {
                newest.insert(key, record);
            }
        }
    }
    Ok(newest)
}

fn table(records: &BTreeMap<[String; 4], Value>) -> String {
    let mut out = String::new();
    let mut machine = "";
    for ([name, model, precision, peer], record) in records {
        if machine != name {
            machine = name;
            let (facts, date) = (&record["machine"], record["date"].as_str().unwrap_or("?"));
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "\n{}, {} cores, {date}. Fletcher / peer; bold: how many times faster it is.\n\n{HEAD}",
                facts["cpu"].as_str().unwrap_or("?"),
                facts["cores"]
            );
        }
        let cells = WORKLOADS.map(|workload| cell(&record["workloads"][workload])).join(" | ");
        let _ = writeln!(out, "| {model} | {peer} {precision} | {cells} |");
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn cell(workload: &Value) -> String {
    let number = |key: &str| workload[key].as_f64();
    let (Some(own), Some(peer), Some(ratio)) =
        (number("fletcher"), number("peer"), number("ratio"))
    else {
        return "–".to_owned();
    };
    let show = |value: f64| match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    format!("{} / {} **{ratio:.2}**", show(own), show(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stands_between_its_marks() {
        let record = serde_json::json!({
            "date": "2026-01-01", "machine": {"cpu": "C", "cores": 2},
            "workloads": {"64 tokens": {"fletcher": 300.4, "peer": 100.0, "ratio": 3.004}},
        });
        let key = ["m", "M", "f32", "P"].map(str::to_owned);
        let table = table(&BTreeMap::from([(key, record)]));
        assert!(table.contains("| M | P f32 | 300 / 100 **3.00** | – | – | – |"), "{table}");
        let readme = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replace(&readme, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(replace("a", "new").is_err());
    }
}
