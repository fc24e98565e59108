//! Whole builds, in process, over a store of their own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod bases;
mod cache;
mod compression;
mod contexts;
mod copy;
mod damage;
mod download;
mod exchange;
mod explain;
mod image;
mod language;
mod listed;
mod mounts;
mod moved;
mod run;
mod secrets;
mod signatures;
mod trust;
