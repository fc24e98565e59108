fn main() {
    let sum: u64 = (1..=100).sum();
    println!("the sum is {}", itoa::Buffer::new().format(sum));
}
