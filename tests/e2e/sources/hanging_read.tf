# plan reads this inside of terraform itself, which can't be asked to stop: the server never answers.
data "terraform_remote_state" "other" {
  backend = "http"
  config = {
    address = "http://@HOST@/state"
  }
}
