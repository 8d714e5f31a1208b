//! Tables of hostile input and hostile programs: each test drives every member of a class (request members,
//! routes, frames, file systems, kernel counters, semaphores, image instructions) and fails for a member that
//! has no entry.

mod attributes;
mod connections;
mod counters;
mod descriptors;
mod directories;
pub(crate) mod filesystems;
mod frames;
mod image_instructions;
mod members;
mod privileges;
mod semaphores;
