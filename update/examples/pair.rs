use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (old, new) = (std::fs::read(&args[1]).unwrap(), std::fs::read(&args[2]).unwrap());
    let t = Instant::now();
    let pad = |mut v: Vec<u8>| {
        v.resize(v.len().next_multiple_of(4096), 0);
        v
    };
    let (old, new) = (pad(old), pad(new));
    let patch = update::patch::make((&old, [1; 32]), (&new, [2; 32])).unwrap();
    println!("patch {} in {:?}", patch.len(), t.elapsed());
    if let Some(out) = args.get(3) {
        std::fs::write(out, &patch).unwrap();
    }
}
