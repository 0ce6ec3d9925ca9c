//! Decides who is alive, who leads, and where a service is: [`Registry`] and the questions to it.
//!
//! Instances come from two sources: the cluster's own, which are replaced as a whole whenever the
//! controller says so ([`Registry::set_cluster`]), and those that registered themselves, which live
//! for [`LEASE`] after each heartbeat. What a reader would get wrong: the registry never forgets the
//! cluster's instances by itself. A controller that is silent leaves the last known ones in place.
//!
//! No clock: whoever asks brings the time. No I/O: see `discoverd`.

mod mentioned;
mod names;
mod registry;
mod zone;

pub use mentioned::services_in;
pub use names::{Answer, Question, QuestionKind, answer, reads_as};
pub use registry::{Change, LEASE, Owner, Refused, Registry, Service, changes};
pub use zone::{Zone, ZoneAnswer, ZoneKind, zone_answer};
