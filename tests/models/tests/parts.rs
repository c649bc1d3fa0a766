//! Single parts of the engine, for which a model is small enough that most of its orders are seen.

use snapvol::internals::models;
use snapvol_models::run;

#[test]
fn wait_returns_when_no_earlier_reader_is_left() {
    run("pins", 50_000, models::pins);
}

#[test]
fn table_of_hot_blocks_never_leads_to_a_block_that_was_freed() {
    run("hot blocks", 50_000, models::hot_blocks);
}

#[test]
fn frame_that_comes_round_again_is_never_taken_for_the_one_before() {
    run("frames", 20_000, models::frames);
}
