//! What `fletcher bench` is made of: workloads, the machine's fingerprint, and three ways to show
//! what was measured (tables for the terminal, JSON for records, one page with plots).

pub(crate) mod machine;
pub(crate) mod page;
pub(crate) mod pair;
pub(crate) mod plot;
pub(crate) mod report;
pub(crate) mod table;
pub(crate) mod windows;
pub(crate) mod workload;
