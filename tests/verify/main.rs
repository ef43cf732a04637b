//! `cortex verify`: clean on a healthy cluster, busy or not, and each defect that is planted is found and named.

mod defects;
mod healthy;
mod scene;
#[path = "../support/mod.rs"]
mod support;
