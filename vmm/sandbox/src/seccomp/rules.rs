//! Rules on system calls and their arguments, written short.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A condition on one argument.
pub(super) type Condition = SeccompCondition;

/// The low 32 bits of argument `number` are `value`. For what the kernel takes as an `int`.
pub(super) fn is(number: u8, value: u32) -> Condition {
    condition(number, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
}

/// Argument `number` differs from `value`.
pub(super) fn is_not(number: u8, value: u32) -> Condition {
    condition(number, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value.into())
}

/// Argument `number`, all 64 bits of it, is zero: a null pointer.
pub(super) fn is_null(number: u8) -> Condition {
    condition(number, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

/// Of the bits of `mask`, argument `number` has exactly those of `bits`.
pub(super) fn has(number: u8, mask: u32, bits: u32) -> Condition {
    condition(number, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask.into()), bits.into())
}

/// Argument `number` has none of the bits of `mask`.
pub(super) fn lacks(number: u8, mask: u32) -> Condition {
    has(number, mask, 0)
}

fn condition(number: u8, length: SeccompCmpArgLen, operator: SeccompCmpOp, value: u64) -> Condition {
    SeccompCondition::new(number, length, operator, value).expect("calls have arguments 0 to 5")
}

/// Calls, with the ways in which each is meant. They are looked for in the order of their numbers, which the kernel gave out
/// with the common ones first.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    /// These calls, whatever their arguments.
    pub(super) fn all(&mut self, calls: &[libc::c_long]) -> &mut Self {
        calls.iter().for_each(|call| drop(self.0.insert(*call, Vec::new())));
        self
    }

    /// A call if all `conditions` hold; one of several ways it may be called.
    pub(super) fn when<const N: usize>(
        &mut self,
        call: libc::c_long,
        conditions: [Condition; N],
    ) -> &mut Self {
        const { assert!(N > 0, "a rule without conditions is for `all`") };
        let rule = SeccompRule::new(conditions.to_vec()).expect("there are conditions");
        match self.0.get_mut(&call) {
            // Any arguments are meant already.
            Some(ways) if ways.is_empty() => {}
            Some(ways) => ways.push(rule),
            None => drop(self.0.insert(call, vec![rule])),
        }
        self
    }

    /// The calls meant in any way.
    pub(super) fn calls(&self) -> impl Iterator<Item = libc::c_long> {
        self.0.keys().copied()
    }

    /// Whether a call is meant in any way.
    #[cfg(test)]
    pub(super) fn has(&self, call: libc::c_long) -> bool {
        self.0.contains_key(&call)
    }

    /// The filter.
    pub(super) fn compile(self, meant: SeccompAction, other: SeccompAction) -> Result<BpfProgram, Error> {
        let filter = SeccompFilter::new(self.0, other, meant, TargetArch::x86_64)?;
        Ok(filter.try_into()?)
    }
}
