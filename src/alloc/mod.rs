//! stub
pub(crate) fn index_height(chunks: u64) -> u32 { let mut h=1; let mut c=63; while c<chunks {c*=63;h+=1;} h }
