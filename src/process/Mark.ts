/**
 * The mark that a child and its descendants carry in their environment, by which those that left the kill scope are found.
 *
 * @since 0.1.0
 */

/**
 * Name of the environment variable that is set in every child (its value is unique), as systemd does with
 * `INVOCATION_ID`. A descendant keeps it unless it clears its environment; a supervisor further down replaces it for its
 * own children.
 *
 * @category constants
 * @since 0.1.0
 */
export const variable = "EFFECT_MICROVM_SPAWN"
