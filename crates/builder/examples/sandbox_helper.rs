//! The helper process of the container runtime, for tests: what the real binary becomes when
//! it is started so.

fn main() {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.split_first() {
        Some((first, rest)) if first == container::HELPER_ARG => container::helper_main(rest),
        _ => std::process::exit(2),
    }
}
