//! Random requests; what must hold for each is beside how they are made, in `tests/clouds/evs.rs`.

use super::clouds::evs;

/// OP-098, and D1, D2, D4 of the dialects: 10,000 requests, a fresh pool for each forty.
#[test]
fn op_098_random_requests_are_served_or_refused_without_a_trace() {
    let (mut served, mut refused) = (0, 0);
    for seed in 0..250 {
        let store = evs::store();
        let mut rng = fastrand::Rng::with_seed(seed);
        for n in 0..40 {
            let bytes: Vec<u8> = (0..64).map(|_| rng.u8(..)).collect();
            let run = std::panic::AssertUnwindSafe(|| evs::one_request(&store, &bytes));
            match std::panic::catch_unwind(run) {
                Ok(status) if (200..300).contains(&status) => served += 1,
                Ok(_) => refused += 1,
                Err(panic) => {
                    eprintln!("request {n} of seed {seed}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    println!("{served} served, {refused} refused");
    // The generator is of use only while it makes a good part of each.
    assert!(served > 1_000 && refused > 1_000, "{served} served, {refused} refused");
}
