//! What another machine answers when it is asked for chunks: it is told apart the same in whatever pieces it arrives, nothing
//! longer than a chunk is taken, and all of it ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_client::source::exchange::{AnswerDecoder, Answered, BadAnswer, MAX_CHUNKS, decode_missing, decode_question};

const FRAME_LIMIT_BYTES: usize = 100;

/// What an answer says, and how its reading ended.
fn told(pieces: &[&[u8]], count: usize) -> (Vec<Answered>, Option<BadAnswer>, usize) {
    let mut decoder = AnswerDecoder::new(count, FRAME_LIMIT_BYTES);
    let mut told = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.take_next() {
                Ok(Some(answered)) => told.push(answered),
                Ok(None) => break,
                Err(error) => return (told, Some(error), decoder.left()),
            }
        }
    }
    (told, None, decoder.left())
}

fuzz_target!(|data: &[u8]| {
    let Some(([count, piece], answer)) = data.split_first_chunk::<2>() else { return };
    let count = usize::from(*count);
    let pieces: Vec<&[u8]> = answer.chunks(usize::from(*piece).max(1)).collect();
    let said = told(&pieces, count);
    assert_eq!(said, told(&[answer], count));
    let (answered, _, left) = said;
    assert_eq!(answered.len() + left, count);
    for answered in answered {
        if let Answered::Frame(frame) = answered {
            assert!(!frame.is_empty() && frame.len() <= FRAME_LIMIT_BYTES);
        }
    }
    if let Ok(ids) = decode_question(answer, MAX_CHUNKS) {
        assert!(ids.len() * 32 == answer.len() && (1..=MAX_CHUNKS).contains(&ids.len()));
    }
    assert!(decode_missing(answer, count).is_none_or(|missing| missing.len() == count));
});
