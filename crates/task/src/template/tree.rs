//! Changes to a parsed template before it is executed.
//!
//! The template engine knows neither where it is when something fails nor when it has
//! done enough, lets members of missing values be missing too, and has values that do not
//! change. So every node is preceded by a call that says where we are and what it costs;
//! a chain of members becomes a call that fails on a missing link; `template` without
//! argument passes nothing; and `set $dict ...` assigns what it gives to `$dict`.
//! The functions that only this module calls have names that no template can contain.

use gotmpl::parse::{
    ActionNode, BranchNode, CommandNode, Expr, ListNode, Node, Number, PipeNode, Pos, SmolStr,
    TemplateNode,
};

use super::budget::CALL_COST;

/// Says where execution is: offset and cost.
pub(super) const REACH: &str = "reach a node";
/// Takes members of a value: the value, then their names.
pub(super) const MEMBER: &str = "take a member";
/// Gives nothing.
pub(super) const NOTHING: &str = "give nothing";

/// Functions that change their first argument in Go.
const CHANGING: [&str; 4] = ["set", "unset", "merge", "mergeOverwrite"];

/// A name that no function has.
pub(super) struct UnknownFunction {
    pub(super) name: String,
    pub(super) offset: usize,
}

pub(super) struct Rewriter<'a> {
    pub(super) is_function: &'a dyn Fn(&str) -> bool,
}

impl Rewriter<'_> {
    pub(super) fn list(&self, list: ListNode) -> Result<ListNode, UnknownFunction> {
        let mut nodes = Vec::with_capacity(list.nodes.len() * 2);
        for node in list.nodes {
            self.node(node, &mut nodes)?;
        }
        Ok(ListNode { pos: list.pos, nodes })
    }

    fn node(&self, node: Node, out: &mut Vec<Node>) -> Result<(), UnknownFunction> {
        match node {
            Node::Text(text) => out.push(Node::Text(text)),
            Node::List(list) => out.push(Node::List(self.list(list)?)),
            Node::Action(ActionNode { pos, pipe }) => {
                let (pipe, cost) = self.counted(pipe)?;
                out.push(reach(pos, cost));
                let pipe = match changed_variable(&pipe) {
                    Some(name) => {
                        let (decl, given) = (vec![name.clone()], variable(pos, name));
                        let changed = PipeNode { decl, is_assign: true, ..pipe.clone() };
                        out.push(Node::Action(ActionNode { pos, pipe: changed }));
                        PipeNode { commands: vec![given], ..pipe }
                    }
                    None => pipe,
                };
                out.push(Node::Action(ActionNode { pos, pipe }));
            }
            Node::If(branch) => self.branch(branch, Node::If, out)?,
            Node::Range(branch) => self.branch(branch, Node::Range, out)?,
            Node::With(branch) => self.branch(branch, Node::With, out)?,
            Node::Template(TemplateNode { pos, name, pipe }) => {
                let (pipe, cost) = match pipe {
                    Some(pipe) => self.counted(pipe)?,
                    None => (call(pos, NOTHING, Vec::new()), 1),
                };
                out.push(reach(pos, cost));
                out.push(Node::Template(TemplateNode { pos, name, pipe: Some(pipe) }));
            }
            Node::Define(_) => (),
            Node::Break(pos) => out.extend([reach(pos, 1), Node::Break(pos)]),
            Node::Continue(pos) => out.extend([reach(pos, 1), Node::Continue(pos)]),
        }
        Ok(())
    }

    fn branch(
        &self,
        branch: BranchNode,
        kind: fn(BranchNode) -> Node,
        out: &mut Vec<Node>,
    ) -> Result<(), UnknownFunction> {
        let BranchNode { pos, pipe, body, else_body } = branch;
        let (pipe, cost) = self.counted(pipe)?;
        out.push(reach(pos, cost));
        let body = self.list(body)?;
        let else_body = else_body.map(|body| self.list(body)).transpose()?;
        out.push(kind(BranchNode { pos, pipe, body, else_body }));
        Ok(())
    }

    /// A pipeline, and how many expressions are in it.
    fn counted(&self, pipe: PipeNode) -> Result<(PipeNode, usize), UnknownFunction> {
        let mut count = 1;
        let pipe = self.pipe(pipe, &mut count)?;
        Ok((pipe, count))
    }

    fn pipe(&self, pipe: PipeNode, count: &mut usize) -> Result<PipeNode, UnknownFunction> {
        let mut commands = Vec::with_capacity(pipe.commands.len());
        for command in pipe.commands {
            let args = command.args.into_iter().map(|arg| self.expr(arg, count));
            commands.push(CommandNode { pos: command.pos, args: args.collect::<Result<_, _>>()? });
        }
        Ok(PipeNode { commands, ..pipe })
    }

    fn expr(&self, expr: Expr, count: &mut usize) -> Result<Expr, UnknownFunction> {
        *count += 1;
        Ok(match expr {
            Expr::Field(pos, names) if names.len() > 1 => {
                let first = Expr::Field(pos, names[..1].to_vec());
                member(pos, first, &names[1..])
            }
            Expr::Variable(pos, name, names) if !names.is_empty() => {
                member(pos, Expr::Variable(pos, name, Vec::new()), &names)
            }
            Expr::Chain(pos, inner, names) => {
                let inner = self.expr(*inner, count)?;
                member(pos, inner, &names)
            }
            Expr::Pipe(pos, pipe) => Expr::Pipe(pos, self.pipe(pipe, count)?),
            Expr::Identifier(pos, name) if !(self.is_function)(&name) => {
                return Err(UnknownFunction { name: name.to_string(), offset: pos.offset });
            }
            other => other,
        })
    }
}

/// The variable that a pipeline of one call changes: `set $dict "key" "value"`.
fn changed_variable(pipe: &PipeNode) -> Option<SmolStr> {
    let [command] = &pipe.commands[..] else { return None };
    match &command.args[..] {
        [Expr::Identifier(_, function), Expr::Variable(_, name, members), ..]
            if CHANGING.contains(&function.as_str()) && members.is_empty() && name != "$" =>
        {
            Some(name.clone())
        }
        _ => None,
    }
}

fn variable(pos: Pos, name: SmolStr) -> CommandNode {
    CommandNode { pos, args: vec![Expr::Variable(pos, name, Vec::new())] }
}

fn member(pos: Pos, value: Expr, names: &[SmolStr]) -> Expr {
    let names = names.iter().map(|name| Expr::String(pos, name.as_str().into()));
    Expr::Pipe(pos, call(pos, MEMBER, std::iter::once(value).chain(names).collect()))
}

/// An action that prints nothing, since it assigns.
fn reach(pos: Pos, cost: usize) -> Node {
    let number =
        |number: usize| Expr::Number(pos, Number::Int(i64::try_from(number).unwrap_or(i64::MAX)));
    let cost = cost.saturating_mul(CALL_COST);
    let pipe = call(pos, REACH, vec![number(pos.offset), number(cost)]);
    Node::Action(ActionNode { pos, pipe: PipeNode { decl: vec![REACH.into()], ..pipe } })
}

fn call(pos: Pos, function: &str, arguments: Vec<Expr>) -> PipeNode {
    let mut args = vec![Expr::Identifier(pos, function.into())];
    args.extend(arguments);
    let commands = vec![CommandNode { pos, args }];
    PipeNode { pos, decl: Vec::new(), commands, is_assign: false }
}
