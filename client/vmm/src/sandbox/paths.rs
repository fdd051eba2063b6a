//! Shuts the process out of the file system, and of whatever else Landlock knows.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};

use super::SandboxError;

/// The newest of Landlock's interfaces that is asked for; an older kernel gives what it has.
const NEWEST: ABI = ABI::V6;

/// Makes no path reachable, no TCP port, no process outside. Answers in words how much of it the kernel does.
pub(super) fn shut_out() -> Result<&'static str, SandboxError> {
    let enforced = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(SandboxError::Landlock)?;
    Ok(match enforced.ruleset {
        RulesetStatus::FullyEnforced => "Landlock",
        RulesetStatus::PartiallyEnforced => "Landlock (as far as this kernel has it)",
        RulesetStatus::NotEnforced => "no Landlock in this kernel",
    })
}
